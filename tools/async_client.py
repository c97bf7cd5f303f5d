"""Writes the async client from the blocking one: `python -m tools.async_client`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

PACKAGE: Final = Path(__file__).parent.parent / "client" / "cointeract_client"
SOURCE: Final = PACKAGE / "sync.py"
TARGET: Final = PACKAGE / "aio.py"

AWAITED: Final = ("_send", "_submit", "_download", "_pause", "job", "submit", "wait", "cancel", "close")
PLAIN: Final = ("__init__", "_error", "_path")
RULES: Final = (
    (
        r'"""The blocking client\."""',
        '"""The async client. Written from sync.py by tools/async_client.py."""',
    ),
    (r"\bimport time\n", "import asyncio\nimport time\n"),
    (r"\bClient\b(?=[:(]| ->|\.|:$)|(?<=-> )Client\b", "AsyncClient"),
    (r"\bBaseTransport\b", "AsyncBaseTransport"),
    (r"\bIterator\b", "AsyncIterator"),
    (r"\bCallable, AsyncIterator, Mapping", "AsyncIterator, Callable, Mapping"),
    (r"__(enter|exit)__", r"__a\1__"),
    (r"\bwith self\._http\.stream", "async with self._http.stream"),
    (r"\bfor (\w+) in response\.iter_(\w+)", r"async for \1 in response.aiter_\2"),
    (r"\bfor (\w+) in self\.events", r"async for \1 in self.events"),
    (r"\bresponse\.read\(\)", "await response.aread()"),
    (r"\bself\._http\.close\(\)", "await self._http.aclose()"),
    (r"\bself\._http\.send\(", "await self._http.send("),
    (r"\btime\.sleep\(", "await asyncio.sleep("),
    (rf"\bself\.({'|'.join(AWAITED)})\(", r"await self.\1("),
    (
        r"\(await (self\.job\(job\))\)\.is_final|await (self\.job\(job\))\.is_final",
        r"(await self.job(job)).is_final",
    ),
    (r"await (self\._send\([^\n]*?\)\))\.(content|json)", r"(await \1).\2"),
    (r"await (self\._send\(\w+\))\.content", r"(await \1).content"),
    (r"( *)yield from page\.data\n", r"\1for job in page.data:\n\1    yield job\n"),
    (r"Ctrl-C cancels the job", "Canceling the task cancels the job"),
    (r"except KeyboardInterrupt", "except asyncio.CancelledError"),
)


def async_source(source: str) -> str:
    """The async client's source."""
    text = re.sub(rf"^    def (?!{'|'.join(PLAIN)})", "    async def ", source, flags=re.MULTILINE)
    for pattern, replacement in RULES:
        text = re.sub(pattern, replacement, text)
    return text


if __name__ == "__main__":
    TARGET.write_text(async_source(SOURCE.read_text(encoding="utf-8")), encoding="utf-8")
