"""A headless Chromium, steered over its debugging protocol: one for many tests, each with a fresh profile."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import httpx
from websockets.asyncio.client import ClientConnection, connect

BINARY = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
Message = dict[str, Any]
KEYS = {
    "Tab": (9, ""), "Enter": (13, "\r"), " ": (32, " "), "Escape": (27, ""),
    "ArrowLeft": (37, ""), "ArrowRight": (39, ""),
}  # fmt: skip
SHIFT, CONTROL = 8, 2


class Navigated(Exception):
    """The page went elsewhere, or loaded again, before it could answer."""


@dataclass
class Page:
    """One tab."""

    socket: ClientConnection
    complaints: list[str] = field(default_factory=list)
    """What the page logged as an error: exceptions, refused contents."""
    lost: list[str] = field(default_factory=list)
    """Patterns of addresses whose answers get lost on the way, once each."""
    context: str = ""
    """The profile that the tab belongs to."""
    _sent: int = 0
    _answers: dict[int, asyncio.Future[Message]] = field(default_factory=dict)
    _listeners: dict[str, Callable[[Message], Awaitable[None]]] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def read(self) -> None:
        """Take what the browser says, until the connection ends."""
        async for text in self.socket:
            message = json.loads(text)
            method, details = message.get("method"), message.get("params", {})
            if method == "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(details["exceptionDetails"]))
            entry = details.get("entry", {})
            # 503 is how /readyz says that there is no worker.
            expected = entry.get("source") == "network" and entry.get("url", "").endswith("/readyz")
            if method == "Log.entryAdded" and entry["level"] == "error" and not expected:
                self.complaints.append(json.dumps(details["entry"]))
            if method in self._listeners:
                task = asyncio.ensure_future(self._listeners[method](details))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            if message.get("id") in self._answers:
                self._answers.pop(message["id"]).set_result(message)

    async def call(self, method: str, **parameters: Any) -> Message:
        self._sent += 1
        answer = self._answers[self._sent] = asyncio.get_running_loop().create_future()
        await self.socket.send(json.dumps({"id": self._sent, "method": method, "params": parameters}))
        message = await asyncio.wait_for(answer, 30)
        if "navigated" in message.get("error", {}).get("message", ""):
            raise Navigated(method)
        assert "error" not in message, message
        result: Message = message["result"]
        return result

    def on(self, event: str, listener: Callable[[Message], Awaitable[None]]) -> None:
        self._listeners[event] = listener

    async def run(self, expression: str) -> Any:
        """The value of a JavaScript expression (a promise is awaited)."""
        answer = await self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def until(self, expression: str, seconds: float = 20.0) -> None:
        """Wait until a JavaScript expression is true."""
        deadline = time.monotonic() + seconds

        async def is_true() -> bool:
            try:
                return bool(await self.run(f"Boolean({expression})"))
            except Navigated:
                return False

        while not await is_true():
            if time.monotonic() > deadline:
                text = await self.run("document.body.innerText.slice(0, 1500)")
                told = [complaint[:300] for complaint in self.complaints[:3]]
                raise AssertionError(f"never true: {expression}\n{text}\n{told}")
            await asyncio.sleep(0.05)

    async def text(self, selector: str) -> str:
        """The text of the first element that a selector finds; empty if there is none."""
        return str(await self.run(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    async def says(self, selector: str, text: str, seconds: float = 20.0) -> None:
        """Wait until an element has a text in it."""
        element = f"document.querySelector({json.dumps(selector)})"
        await self.until(f"{element}?.innerText.includes({json.dumps(text)})", seconds)

    async def click(self, selector: str) -> None:
        await self.until(f"document.querySelector({json.dumps(selector)})")
        await self.run(f"document.querySelector({json.dumps(selector)}).click()")

    async def write(self, selector: str, text: str) -> None:
        """Put a text into a field, as typing it would."""
        await self.until(f"document.querySelector({json.dumps(selector)})")
        await self.run(
            f"(() => {{ const field = document.querySelector({json.dumps(selector)});"
            f"field.value = {json.dumps(text)}; const type = field.tagName === 'SELECT' ? 'change' : 'input';"
            "field.dispatchEvent(new Event(type, { bubbles: true })); })()"
        )

    async def press(self, key: str, modifiers: int = 0) -> None:
        code, text = KEYS[key]
        known = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": code}
        typed = {"text": text} if text and not modifiers else {}
        await self.call("Input.dispatchKeyEvent", type="keyDown", modifiers=modifiers, **known, **typed)
        await self.call("Input.dispatchKeyEvent", type="keyUp", modifiers=modifiers, **known)

    async def type(self, text: str) -> None:
        await self.call("Input.insertText", text=text)

    async def choose_file(self, selector: str, path: Path) -> None:
        root = (await self.call("DOM.getDocument"))["root"]["nodeId"]
        node = (await self.call("DOM.querySelector", nodeId=root, selector=selector))["nodeId"]
        await self.call("DOM.setFileInputFiles", files=[str(path)], nodeId=node)

    async def lose_answers(self) -> None:
        """From now on, `lost` has an effect: the server gets the request, the page no answer."""

        async def pass_on(details: Message) -> None:
            pattern = next((one for one in self.lost if fnmatch(details["request"]["url"], one)), None)
            if pattern is not None:
                self.lost.remove(pattern)
                await self.call(
                    "Fetch.failRequest", requestId=details["requestId"], errorReason="ConnectionClosed"
                )
            else:
                await self.call("Fetch.continueRequest", requestId=details["requestId"])

        self.on("Fetch.requestPaused", pass_on)
        await self.call("Fetch.enable", patterns=[{"urlPattern": "*/v1/*", "requestStage": "Response"}])

    async def resize(self, width: int, height: int, dark: bool = False) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        await self.call("Emulation.setDeviceMetricsOverride", **metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        still = {"name": "prefers-reduced-motion", "value": "reduce"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme, still])

    async def screenshot(self) -> bytes:
        """What is to be seen now, as a PNG."""
        picture = await self.call("Page.captureScreenshot", format="png")
        return base64.b64decode(picture["data"])


@dataclass
class Browser:
    """A running Chromium."""

    port: int

    @asynccontextmanager
    async def tab(
        self, width: int = 1440, height: int = 900, dark: bool = False, script: str = "", context: str = ""
    ) -> AsyncIterator[Page]:
        """A tab in a fresh profile, or in that of another tab. `script` runs in each page before its own."""
        async with httpx.AsyncClient() as client:
            version = (await client.get(f"http://127.0.0.1:{self.port}/json/version")).json()
        async with _talking(version["webSocketDebuggerUrl"]) as whole:
            profile = context or (await whole.call("Target.createBrowserContext"))["browserContextId"]
            target = await whole.call("Target.createTarget", url="about:blank", browserContextId=profile)
            address = f"ws://127.0.0.1:{self.port}/devtools/page/{target['targetId']}"
            try:
                async with _talking(address) as page:
                    page.context = profile
                    for domain in ("Page", "Runtime", "DOM", "Log"):
                        await page.call(f"{domain}.enable")
                    await page.call("Page.addScriptToEvaluateOnNewDocument", source=script)
                    await page.resize(width, height, dark)
                    yield page
            finally:
                if not context:
                    await whole.call("Target.disposeBrowserContext", browserContextId=profile)


@asynccontextmanager
async def _talking(url: str) -> AsyncIterator[Page]:
    async with connect(url, max_size=None) as socket:
        page = Page(socket)
        reading = asyncio.ensure_future(page.read())
        try:
            yield page
        finally:
            reading.cancel()


@contextmanager
def running_browser(
    folder: Path, *options: str, environment: Mapping[str, str] | None = None
) -> Iterator[Browser]:
    """A Chromium with a microphone that hears a beep."""
    assert BINARY is not None
    process = subprocess.Popen(
        [
            BINARY, "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0",
            "--autoplay-policy=no-user-gesture-required", "--disable-background-networking",
            "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", "--mute-audio",
            f"--user-data-dir={folder}", *options, "about:blank",
        ],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        port_file, deadline = folder / "DevToolsActivePort", time.monotonic() + 30
        while not port_file.exists() or not port_file.read_text().strip():
            assert time.monotonic() < deadline, "Chromium does not start"
            time.sleep(0.05)
        yield Browser(int(port_file.read_text().splitlines()[0]))
    finally:
        process.kill()
        process.wait()
