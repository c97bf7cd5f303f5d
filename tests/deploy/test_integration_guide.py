"""docs/integration.md, followed to the letter: its steps in one shell, its programs, its page in a browser.

What the test adds is what the world would: ports that are free, and for the part behind TLS two host names
(a proxy that connects to them), and a certificate authority that Python and the browser trust.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import httpx
import pytest

from deploy.stack import free_port
from tests.faults.stack import eventually
from tools.browser import BINARY, Browser, Page, running_browser

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "integration.md"
STEP_S = 300.0
PLAYS = "document.querySelector('video').readyState >= 2 && document.querySelector('video').videoWidth > 0"
PROXY_OPTIONS = """{{
    admin off
    auto_https disable_redirects
    http_port {http}
    https_port {https}
    local_certs
    skip_install_trust
}}
"""
"""What lets Caddy run beside others, with certificates of its own authority."""


@dataclass
class Guide:
    """Somebody who follows the page in a folder of their own, in one shell."""

    folder: Path
    ports: dict[str, int]
    shell: subprocess.Popen[str]
    output: Path
    blocks: dict[str, list[str]] = field(default_factory=dict)
    """Steps (`sh`) by the heading that they stand under, with the ports that are free here."""
    done: int = 0

    @property
    def video_url(self) -> str:
        return f"http://127.0.0.1:{self.ports['8000']}"

    @property
    def shop_url(self) -> str:
        return f"http://127.0.0.1:{self.ports['5000']}"

    def say(self, text: str, seconds: float = STEP_S) -> None:
        """Run lines in the shell, and wait until they have been read and have succeeded."""
        assert self.shell.stdin is not None
        self.done += 1
        mark = f"step {self.done} ends with"
        self.shell.stdin.write(f"{text}\necho {mark} $?\n")
        self.shell.stdin.flush()
        eventually(lambda: mark in self.said(), seconds, f"{text}\n{self.said()[-2000:]}")
        assert f"{mark} 0" in self.said(), self.said()[-3000:]

    def said(self) -> str:
        return self.output.read_text(errors="replace")

    def follow(self, heading: str) -> None:
        """Do the steps under a heading."""
        for step in self.blocks[heading]:
            self.say(step)

    def wait_until_ready(self, url: str) -> None:
        eventually(lambda: _is_up(url), STEP_S, f"{url}\n{self.said()[-2000:]}")


def _is_up(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def _with_ports(text: str, ports: dict[str, int]) -> str:
    for port, free in ports.items():
        text = text.replace(f"127.0.0.1:{port}", f"127.0.0.1:{free}")
    return text


def read_page(folder: Path, ports: dict[str, int]) -> dict[str, list[str]]:
    """Write the files that the page shows into `folder`. Returns its steps by heading."""
    steps: dict[str, list[str]] = {}
    for section in re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        heading = section.partition("\n")[0]
        for kind, text in re.findall(r"^```(\w*)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL):
            named = re.match(r"(?:#|//|<!--) ([\w.]+\w)", text)
            if kind != "sh" and named:
                (folder / named[1]).write_text(_with_ports(text, ports), encoding="utf-8")
            else:
                assert kind == "sh", f"what is to be done with this? {text}"
                steps.setdefault(heading.split(".")[0], []).append(_with_ports(text, ports))
    return steps


@pytest.fixture(scope="module")
def guide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guide]:
    folder = tmp_path_factory.mktemp("guide")
    ports = {port: free_port("127.0.0.1") for port in ("8000", "5000")}
    steps = read_page(folder, ports)
    output = folder / "output.txt"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("COINTERACT_")},
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "COINTERACT_PORT": str(ports["8000"]),
        "SHOP_PORT": str(ports["5000"]),
        "COINTERACT_MIN_FREE_BYTES": "0",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "160",
    }
    with output.open("w") as file:
        shell = subprocess.Popen(
            ["bash"], stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT, text=True, cwd=folder,
            env=environment, start_new_session=True,
        )  # fmt: skip
    guide = Guide(folder, ports, shell, output, steps)
    yield guide
    os.killpg(shell.pid, signal.SIGTERM)
    eventually(lambda: not _lives(shell), STEP_S, "the end of what the shell has started")


def _lives(shell: subprocess.Popen[str]) -> bool:
    """Whether any process of the shell's group is there. SIGTERM leaves a shell that waits for input."""
    if shell.stdin is not None and not shell.stdin.closed:
        shell.stdin.close()
    shell.poll()
    try:
        os.killpg(shell.pid, 0)
    except ProcessLookupError:
        return False
    return True


def seconds_of(video: Path) -> float:
    with av.open(str(video)) as container:
        return sum(1 for _ in container.decode(video=0)) / 25


async def _order(page: Page, address: str) -> str:
    """Press the shop's button; returns where the video came from."""
    await page.call("Page.navigate", url=address)
    await page.until("document.readyState === 'complete' && document.querySelector('button').onclick")
    await page.click("button")
    await page.until("document.querySelector('progress').value > 0", STEP_S)
    await page.until(PLAYS, STEP_S)
    await page.says("p", "succeeded")
    assert page.complaints == []
    return str(await page.run("document.querySelector('video').src"))


def test_its_steps_lead_to_a_shop_whose_page_shows_a_video(
    guide: Guide, tmp_path_factory: pytest.TempPathFactory
) -> None:
    guide.follow("1")
    guide.wait_until_ready(f"{guide.video_url}/readyz")
    assert httpx.get(f"{guide.video_url}/v1/jobs", trust_env=False).status_code == 401
    guide.follow("2")
    assert seconds_of(guide.folder / "first.mp4") == 3.2
    assert re.search(r"^[1-9]\d* % \w+", guide.said(), re.MULTILINE), "no progress was shown"
    guide.follow("4")
    guide.wait_until_ready(guide.shop_url)
    if BINARY is None:
        pytest.skip("the page was not tried: no Chromium installed (apt install chromium)")
    with running_browser(tmp_path_factory.mktemp("chromium")) as browser:

        async def visit() -> None:
            async with browser.tab() as page:
                assert (await _order(page, guide.shop_url)).startswith(f"{guide.video_url}/v1/jobs/")

        asyncio.run(visit())
    saved = guide.folder / "videos" / "order-7.mp4"
    eventually(saved.exists, 20, f"the webhook\n{guide.said()[-2000:]}")
    assert seconds_of(saved) == 3.2


class Tunnels(socketserver.BaseRequestHandler):
    """A proxy that takes CONNECT: whatever name is asked for, it leads to one port of this machine."""

    def handle(self) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            received = self.request.recv(4096)
            if not received:
                return
            head += received
        with socket.create_connection(("127.0.0.1", self.server.leads_to)) as there:  # type: ignore[attr-defined]
            self.request.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            back = threading.Thread(target=_copy, args=(there, self.request), daemon=True)
            back.start()
            _copy(self.request, there)
            back.join(5)


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        return  # one side is gone


@contextmanager
def names_leading_to(port: int) -> Iterator[str]:
    """The address of a proxy under which every host name is this machine."""
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Tunnels)
    server.daemon_threads = True
    server.leads_to = port  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def trusting(folder: Path, authority: Path) -> dict[str, str]:
    """The environment of a browser that trusts an authority."""
    database = folder / ".pki" / "nssdb"
    database.mkdir(parents=True)
    where = ["-d", f"sql:{database}"]
    subprocess.run(["certutil", "-N", "--empty-password", *where], check=True)
    add = ["certutil", "-A", "-n", "local", "-t", "C,,", "-i", str(authority), *where]
    subprocess.run(add, check=True)
    return {**os.environ, "HOME": str(folder)}


def needs(**packages: str) -> None:
    for tool, package in packages.items():
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed (apt install {package})")


def test_the_same_shop_works_behind_tls_on_two_host_names(
    guide: Guide, tmp_path_factory: pytest.TempPathFactory
) -> None:
    needs(caddy="caddy", certutil="libnss3-tools")
    if BINARY is None:
        pytest.skip("no Chromium installed (apt install chromium)")
    if not guide.done:
        pytest.skip("the test of the steps before this one did not run")
    home = tmp_path_factory.mktemp("home")
    https = free_port("127.0.0.1")
    caddyfile = guide.folder / "Caddyfile"
    options = PROXY_OPTIONS.format(http=free_port("127.0.0.1"), https=https)
    caddyfile.write_text(options + caddyfile.read_text())
    authority = guide.folder / "caddy" / "caddy" / "pki" / "authorities" / "local" / "root.crt"
    with names_leading_to(https) as proxy:
        guide.say(f"export XDG_DATA_HOME={guide.folder}/caddy XDG_CONFIG_HOME={guide.folder}/caddy")
        guide.say(f"export HTTPS_PROXY={proxy} SSL_CERT_FILE={authority}")
        settings, restart = guide.blocks["5"]
        # The proxy first: only then is there an authority that shop.py can trust.
        assert "\ncaddy run &" in restart
        guide.say("caddy run &")
        eventually(authority.exists, STEP_S, f"Caddy's authority\n{guide.said()[-2000:]}")
        guide.say(settings)
        guide.say(re.sub(r"\ncaddy run &.*", "", restart))
        guide.wait_until_ready(f"{guide.video_url}/readyz")
        guide.wait_until_ready(guide.shop_url)
        guide.say(f"DESK=$({guide.blocks['6'][0].strip()}); echo desk:$DESK")
        key = re.findall(r"^desk:(ck_[\w-]+)$", guide.said(), re.MULTILINE)[-1]
        environment = trusting(home, authority)
        with running_browser(
            home / "chromium", f"--proxy-server={proxy}", environment=environment
        ) as browser:
            asyncio.run(_visit_over_tls(guide, browser, key))
    saved = guide.folder / "videos" / "order-8.mp4"
    eventually(saved.exists, 20, f"the webhook\n{guide.said()[-2000:]}")
    assert seconds_of(saved) == 3.2


ASK = (
    "fetch('https://video.example.com/v1/models', {headers: {Authorization: 'Bearer %s'}})"
    ".then((answer) => answer.status, (error) => 0)"
)


async def _visit_over_tls(guide: Guide, browser: Browser, key: str) -> None:
    async with browser.tab() as page:
        source = await _order(page, "https://shop.example.com/?order=8")
        assert source.startswith("https://video.example.com/v1/jobs/"), source
        assert await page.run(ASK % key) == 200
        # The page's own requests, to a server of another origin.
        made: Any = await page.run(
            f"(async () => {{ {(guide.folder / 'desk.js').read_text()}\n"
            "const server = 'https://video.example.com';"
            "const blob = async (name) => (await fetch(`${server}/v1/examples/${name}`)).blob();"
            f"const key = '{key}', person = await blob('person.png'), speech = await blob('speech.wav');"
            "const video = await makeVideo(server, key, person, speech, 'They show it.');"
            "return [video.type, video.size]; })()"
        )
        assert made[0] == "video/mp4"
        assert made[1] > 10_000
        await page.call("Page.navigate", url=guide.shop_url)  # an origin that is not allowed any more
        await page.until("document.readyState === 'complete'")
        assert await page.run(ASK % key) == 0
