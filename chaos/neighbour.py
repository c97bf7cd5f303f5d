"""`cointeract chaos --noisy-neighbour`: measures how much a greedy tenant slows down a modest one.

The modest tenant submits a few jobs a second: first alone, then while the greedy tenant does all that a key
allows at once: floods of submits, JSON and image bombs to validate, trickling uploads, event streams.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from chaos.client import Client, NoAnswer, SubmitForm
from chaos.observed import percentile
from chaos.stack import LiveStack, live_stack
from contract.processes import own_process
from contract.settings import Settings
from workers.engines.fake import FakeSettings

MODEST_RATE: Final = 5.0
"""Submits per second of the modest tenant."""
MOST_RATIO: Final = 2.0
NOISE_GROWS_S: Final = 3.0


@dataclass
class NeighbourReport:
    """What the modest tenant experienced."""

    calm_submit_p50_ms: float | None = None
    calm_submit_p99_ms: float | None = None
    noisy_submit_p50_ms: float | None = None
    noisy_submit_p99_ms: float | None = None
    p99_ratio: float | None = None
    """The ratio of the submit p99 with noise to that without. `MOST_RATIO` is the limit."""
    modest: dict[str, int] = field(default_factory=dict)
    """The number of answers to the modest tenant by status. Only 202 is good."""
    greedy: dict[str, int] = field(default_factory=dict)
    seed: int = 0

    def as_json(self) -> str:
        return json.dumps({"ok": self.ok(), **asdict(self)}, indent=2)

    def ok(self) -> bool:
        """Whether the modest tenant was served as well as alone."""
        was_served = set(self.modest) == {"202"}
        return (
            was_served and bool(self.greedy) and self.p99_ratio is not None and self.p99_ratio <= MOST_RATIO
        )


def run_neighbours(seconds: float, seed: int) -> NeighbourReport:
    """Run the tenants against a stack of their own, for `seconds` without noise and `seconds` with noise."""
    with tempfile.TemporaryDirectory(prefix="cointeract-neighbours-") as folder:
        fake = FakeSettings(seconds_per_step=0.01, media=False)
        with live_stack(Path(folder), 2, fake, Settings(min_free_bytes=0)) as stack:
            return asyncio.run(_Neighbours(stack, seed).run(seconds))


def _new_key(stack: LiveStack, name: str) -> str:
    command = own_process("cli.app", "keys", "create", name)
    environment = dict(stack.supervisor.environment)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@contextmanager
def _noise(port: int, key: str, seed: int) -> Iterator[subprocess.Popen[str]]:
    """A process that makes noise until its standard input is closed."""
    command = own_process("chaos.noise", str(port), str(seed))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(key + "\n")
        process.stdin.flush()
        process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


class _Neighbours:
    def __init__(self, stack: LiveStack, seed: int) -> None:
        self._port = stack.settings.port
        self._modest, self._greedy = _new_key(stack, "modest"), _new_key(stack, "greedy")
        self._form = SubmitForm()
        self._report = NeighbourReport(seed=seed)
        self._modest_statuses: Counter[int] = Counter()

    async def run(self, seconds: float) -> NeighbourReport:
        report = self._report
        await self._submit_modestly(2.0)  # warms up caches and the decoder
        self._modest_statuses.clear()
        calm = await self._submit_modestly(seconds)
        with _noise(self._port, self._greedy, report.seed) as noise:
            await asyncio.sleep(NOISE_GROWS_S)
            noisy = await self._submit_modestly(seconds)
            said, _ = await asyncio.to_thread(noise.communicate)
        report.calm_submit_p50_ms = percentile(calm, 0.5)
        report.calm_submit_p99_ms = percentile(calm, 0.99)
        report.noisy_submit_p50_ms = percentile(noisy, 0.5)
        report.noisy_submit_p99_ms = percentile(noisy, 0.99)
        if report.calm_submit_p99_ms and report.noisy_submit_p99_ms:
            report.p99_ratio = report.noisy_submit_p99_ms / report.calm_submit_p99_ms
        report.modest = {str(status): count for status, count in self._modest_statuses.items()}
        report.greedy = json.loads(said)
        return report

    async def _submit_modestly(self, seconds: float) -> list[float]:
        """The duration of each submit in milliseconds."""
        client, taken = Client(self._port), list[float]()

        async def one() -> None:
            started = time.perf_counter()
            try:
                answer = await client.post("/v1/generate", self._modest, self._form.body(prompt="x"))
                status = answer.status
            except NoAnswer:
                status = 0
            taken.append(1000 * (time.perf_counter() - started))
            self._modest_statuses[status] += 1

        async with asyncio.TaskGroup() as group:
            for _ in range(max(1, int(seconds * MODEST_RATE))):
                group.create_task(one())
                await asyncio.sleep(1 / MODEST_RATE)
        client.close()
        return taken
