"""What keeps a part from working is told by `up`, /readyz and /metrics, whatever it is. Real processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.deploy.test_up import ENVIRONMENT, RunningStack, cointeract, start_stack, stop
from tests.faults.stack import eventually

pytestmark = pytest.mark.slow

WORDS = "the device has fallen off the bus"
LISTENER = f"""\
import os, pathlib, sys
for order in pathlib.Path(os.environ["ORDERS_TO_DIE"]).iterdir():
    if order.name in sys.orig_argv:
        os.write(2, {WORDS!r}.encode() + b"\\n")
        status = int(order.read_text())
        os._exit(status) if status else os.abort()
"""
"""A sitecustomize: a process whose command line holds the name of an order dies as it starts."""


@dataclass
class Frail:
    """A stack whose parts die on order."""

    stack: RunningStack
    orders: Path

    def order(self, word: str, status: int) -> None:
        """Every process started with this word on its command line ends with the status; 0: by SIGABRT."""
        draft = self.orders.parent / word
        draft.write_text(str(status))
        draft.rename(self.orders / word)

    def revoke(self, word: str) -> None:
        (self.orders / word).unlink()

    def readiness(self) -> dict[str, object]:
        try:
            answer: dict[str, object] = httpx.get(f"{self.stack.url}/readyz", trust_env=False).json()
        except httpx.HTTPError:
            return {}
        return answer

    def problems(self) -> str:
        return "\n".join(map(str, self.readiness().get("problems", [])))  # type: ignore[call-overload]

    def metrics(self) -> str:
        return httpx.get(f"{self.stack.url}/metrics", trust_env=False).text

    def healthy_worker(self) -> str:
        socket = self.stack.data / "redis/redis.sock"
        return cointeract("healthy", "worker", COINTERACT_REDIS_URL=f"unix://{socket}").stderr


def start(folder: Path) -> Frail:
    orders = folder / "orders"
    orders.mkdir()
    (folder / "site").mkdir()
    (folder / "site/sitecustomize.py").write_text(LISTENER)
    path = os.pathsep.join(filter(None, [str(folder / "site"), os.environ.get("PYTHONPATH")]))
    environment = {**ENVIRONMENT, "PYTHONPATH": path, "ORDERS_TO_DIE": str(orders)}
    return Frail(start_stack(folder, environment=environment), orders)


@pytest.fixture
def frail(tmp_path: Path) -> Iterator[Frail]:
    frail = start(tmp_path)
    yield frail
    stop(frail.stack)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frail]:
    frail = start(tmp_path_factory.mktemp("frail"))
    eventually(lambda: "is ready" in frail.stack.said(), 60, "the ready panel")
    yield frail
    stop(frail.stack)


def flat(text: str) -> str:
    """Without the line breaks that the width of a terminal made."""
    return " ".join(text.split())


def test_a_model_that_cannot_be_loaded_is_told_with_its_cause_until_it_can(tmp_path: Path) -> None:
    frail = start(tmp_path)
    try:
        fake = tmp_path / "fake/fake.json"
        good = fake.read_text()
        fake.write_text('{"seconds_per_step": "often"}')
        said = "The worker cannot load its model: "
        eventually(lambda: said in flat(frail.stack.said()), 30, "a word about it")
        assert "seconds_per_step" in frail.stack.said()
        problem = eventually(frail.problems, 30, "the API")
        assert problem.startswith(said)
        assert flat(frail.healthy_worker()) == flat(problem)
        assert flat(problem) in flat(frail.stack.said())
        assert frail.readiness()["failing_workers"] == 1
        assert f'cointeract_problem_info{{problem="{said}' in frail.metrics()
        fake.write_text(good)
        eventually(lambda: "is ready" in frail.stack.said(), 60, "the ready panel")
        eventually(lambda: frail.readiness()["problems"] == [], 10, "the end of the problem")
        assert "cointeract_problem_info{" not in frail.metrics()
    finally:
        stop(frail.stack)


def test_a_crash_while_the_model_is_loaded_is_told_with_its_last_words(frail: Frail) -> None:
    frail.order("workers.child", 0)
    said = "The worker cannot load its model: the process that loads it was killed by SIGABRT"
    eventually(lambda: said in flat(frail.stack.said()), 30, "a word about it")
    assert WORDS in frail.stack.said()
    assert WORDS in eventually(frail.problems, 30, "the API")
    assert WORDS in frail.healthy_worker()
    assert WORDS in frail.metrics()
    frail.revoke("workers.child")
    eventually(lambda: "is ready" in frail.stack.said(), 60, "the ready panel")


@pytest.mark.parametrize(("part", "word"), [("worker-1", "worker"), ("reaper", "reaper")])
def test_a_part_that_dies_in_a_loop_is_told_with_its_last_words(running: Frail, part: str, word: str) -> None:
    already = len(running.stack.said())
    running.order(word, 3)
    os.kill(running.stack.children()[word], signal.SIGKILL)
    eventually(lambda: f"{part} keeps dying (exit status 3" in running.problems(), 20, "/readyz")
    assert WORDS in running.problems()
    assert WORDS in running.metrics()
    said = running.stack.said()[already:]
    assert f"{part} keeps dying (exit status 3" in said
    assert WORDS in said
    if part == "worker-1":
        assert running.readiness()["ready"] is False
    running.revoke(word)
    eventually(lambda: running.readiness().get("problems") == [], 40, "the end of it")
    eventually(lambda: running.readiness()["ready"], 20, "a worker")


def test_an_api_that_dies_in_a_loop_is_told_by_up(running: Frail) -> None:
    already = len(running.stack.said())
    running.order("serve", 4)
    os.kill(running.stack.children()["serve"], signal.SIGKILL)
    eventually(lambda: "api keeps dying (exit status 4" in running.stack.said()[already:], 20, "a word")
    assert WORDS in running.stack.said()[already:]
    running.revoke("serve")
    eventually(lambda: running.readiness().get("ready"), 60, "another API")


def test_a_start_that_is_hopeless_ends_with_the_last_words(frail: Frail) -> None:
    frail.order("serve", 5)
    assert frail.stack.process.wait(90) == 1
    assert "api does not start (exit status 5, 5 times)" in flat(frail.stack.said())
    assert WORDS in frail.stack.said()
