"""A headless Chromium, steered over its debugging protocol."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from websockets.asyncio.client import ClientConnection, connect

BINARY = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")


@dataclass
class Page:
    """One tab."""

    socket: ClientConnection
    complaints: list[str] = field(default_factory=list)
    """What the page logged as an error: exceptions, refused contents."""
    _sent: int = 0

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._sent += 1
        await self.socket.send(json.dumps({"id": self._sent, "method": method, "params": parameters}))
        while True:
            message = json.loads(await self.socket.recv())
            if message.get("method") == "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(message["params"]["exceptionDetails"]))
            if message.get("method") == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
                self.complaints.append(json.dumps(message["params"]["entry"]))
            if message.get("id") == self._sent:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result

    async def run(self, expression: str) -> Any:
        """The value of a JavaScript expression (a promise is awaited)."""
        answer = await self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def until(self, expression: str, seconds: float = 20.0) -> None:
        """Wait until a JavaScript expression is true."""
        async with asyncio.timeout(seconds):
            while not await self.run(expression):
                await asyncio.sleep(0.1)

    async def choose_file(self, selector: str, path: Path) -> None:
        root = (await self.call("DOM.getDocument"))["root"]["nodeId"]
        node = (await self.call("DOM.querySelector", nodeId=root, selector=selector))["nodeId"]
        await self.call("DOM.setFileInputFiles", files=[str(path)], nodeId=node)

    async def screenshot(self, path: Path) -> None:
        picture = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(picture["data"]))


@asynccontextmanager
async def browsing(folder: Path, width: int, height: int, mobile: bool = False) -> AsyncIterator[Page]:
    """A tab of a new Chromium with a profile of its own in `folder`."""
    assert BINARY is not None
    process = subprocess.Popen(
        [
            BINARY, "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0",
            "--autoplay-policy=no-user-gesture-required", "--disable-background-networking",
            f"--user-data-dir={folder}", "about:blank",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        port_file = folder / "DevToolsActivePort"
        async with asyncio.timeout(30):
            while not port_file.exists() or not port_file.read_text().strip():
                await asyncio.sleep(0.05)
        port = port_file.read_text().splitlines()[0]
        async with httpx.AsyncClient() as client:
            pages = (await client.get(f"http://127.0.0.1:{port}/json")).json()
        target = next(page for page in pages if page["type"] == "page")
        async with connect(target["webSocketDebuggerUrl"], max_size=None) as socket:
            page = Page(socket)
            for domain in ("Page", "Runtime", "DOM", "Log"):
                await page.call(f"{domain}.enable")
            await page.call(
                "Emulation.setDeviceMetricsOverride",
                width=width,
                height=height,
                deviceScaleFactor=1,
                mobile=mobile,
            )
            yield page
    finally:
        process.kill()
        process.wait()
