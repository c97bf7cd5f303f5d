"""The examples of docs/api.md: curl and Python each reach every route, and every answer is a success."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deploy.samples import write_samples
from server.keys import Scope as KeyScope
from server.keys import create_key
from tests.client.conftest import Service, running_service
from tests.faults.stack import eventually

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "api.md"
SECTION = "\n## Every route by example\n"
FAILS_AT_NULL = 'jq() { command jq -e "$@"; }\n'
"""An answer without the value that an example shows fails it."""


class Witness:
    """Notes who was answered on which route, and how."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.seen: list[tuple[str, str, int]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                agent = dict(scope["headers"]).get(b"user-agent", b"").decode()
                path = getattr(scope.get("route"), "path", "unknown")
                self.seen.append((agent, f"{scope['method']} {path}", message["status"]))
            await send(message)

        await self.app(scope, receive, noted if scope["type"] == "http" else send)


@pytest.fixture(scope="module")
def witnessed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Witness]]:
    patient = {"lease_ttl_s": 4.5, "heartbeat_s": 1.5}
    with running_service(tmp_path_factory.mktemp("page"), seconds_per_step=0.2, **patient) as service:
        # The application is built already; what stands around it is exchanged.
        app = service.live.app
        eventually(lambda: httpx.get(f"{service.url}/readyz").is_success, 60, "a worker")
        witness = Witness(app.middleware_stack)  # type: ignore[arg-type]
        app.middleware_stack = witness
        yield service, witness


def programs() -> dict[str, str]:
    """All blocks of the section, joined by language."""
    section = PAGE.read_text(encoding="utf-8").partition(SECTION)[2]
    blocks = re.findall(r"^```(sh|python)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return {kind: "\n".join(text for of, text in blocks if of == kind) for kind in ("sh", "python")}


def test_every_route_has_a_curl_and_a_python_example_that_work(
    witnessed: tuple[Service, Witness], tmp_path: Path
) -> None:
    for tool in ("bash", "curl", "jq"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    service, witness = witnessed
    key = create_key(service.live.services.store, "page", scopes=frozenset(KeyScope))
    environment = {**os.environ, "COINTERACT_URL": service.url, "COINTERACT_API_KEY": key.token}
    blocks = programs()
    for name, command in (
        ("curl", ["bash", "-euo", "pipefail", "-c", FAILS_AT_NULL + blocks["sh"]]),
        ("python", [sys.executable, "-c", blocks["python"]]),
    ):
        folder = tmp_path / name
        write_samples(folder / "samples")
        witness.seen.clear()
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200, check=False
        )
        assert done.returncode == 0, (name, done.stdout[-2000:], done.stderr[-2000:])
        assert [seen for seen in witness.seen if not 200 <= seen[2] < 300] == []
        assert {seen[0].partition("/")[0] for seen in witness.seen} == {
            "curl" if name == "curl" else "python-httpx"
        }
        paths = service.live.app.openapi()["paths"]
        routes = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
        assert routes - {seen[1] for seen in witness.seen} == set(), f"the {name} examples leave these out"
        assert (folder / "video.mp4").read_bytes()[4:8] == b"ftyp"
