"""Receiving a request body: streamed to disk, capped while it streams, with a deadline.

Every file lands in a temporary one without a name, gone with its request; what the client called it is not
even kept.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import BinaryIO, Final
from urllib.parse import unquote_to_bytes

from pydantic_core import from_json
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from contract.settings import Settings
from server.errors import ApiError, printable

MAX_TEXT_BYTES: Final = 65_536
"""Bytes of one text field. Longer than any valid one, so that the precise limit is named by validation."""
MAX_PARTS: Final = 256
DRAIN_BYTES: Final = 16 * 2**20
DRAIN_SECONDS: Final = 2.0
CHUNK_BYTES: Final = 2**16
NewFile = Callable[[int | None], BinaryIO]
"""Makes an empty file; told how many bytes it will hold at most, if that is known."""


@dataclass(frozen=True)
class ReceivedFile:
    """A file as the client sent it. `declared_type` is what the client says it is ("" if it does not say)."""

    content: BinaryIO
    size: int
    sha256: str
    declared_type: str = ""


@dataclass(frozen=True)
class ReceivedForm:
    """The fields of a multipart body in order of arrival."""

    texts: Mapping[str, list[str]]
    files: Mapping[str, ReceivedFile]


@dataclass(frozen=True)
class FormRules:
    """Which fields there are: largest size in bytes of each file field, and which text fields may repeat."""

    file_limits: Mapping[str, int]
    text_fields: frozenset[str]
    repeatable: frozenset[str] = frozenset()
    long_texts: frozenset[str] = frozenset()
    """Text fields that may hold a whole file as a data: URL."""
    brackets: bool = False
    """Whether `name[key]` is a part of the object `name`."""


@dataclass
class _Part:
    name: str
    is_file: bool
    declared_type: str
    limit: int
    text: bytearray = field(default_factory=bytearray)
    file: BinaryIO | None = None
    size: int = 0
    hash: hashlib._Hash = field(default_factory=hashlib.sha256)


def _utf8(raw: bytes, field_name: str | None) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise ApiError("invalid_value", "Text must be UTF-8.", field=field_name) from error


class _FormReader:
    """Callbacks of the multipart parser; turns parts into texts and files as they arrive."""

    def __init__(self, new_file: Callable[[], BinaryIO], rules: FormRules, settings: Settings) -> None:
        self._new_file, self._rules, self._settings = new_file, rules, settings
        self.texts: dict[str, list[str]] = {}
        self.files: dict[str, ReceivedFile] = {}
        self.complete = False
        self._headers: dict[bytes, bytes] = {}
        self._header_name, self._header_value = b"", b""
        self._part: _Part | None = None
        self._parts = 0

    def on_part_begin(self) -> None:
        self._headers = {}
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise ApiError("too_many", "The form has too many parts.", limit=MAX_PARTS)

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def on_header_end(self) -> None:
        self._headers[self._header_name.lower()] = self._header_value
        self._header_name, self._header_value = b"", b""

    def on_headers_finished(self) -> None:
        disposition, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        if disposition != b"form-data" or b"name" not in options:
            raise ApiError("malformed_body", "A part of the form has no name.")
        if self._headers.get(b"content-transfer-encoding", b"binary").lower() not in (
            b"binary",
            b"8bit",
            b"7bit",
        ):
            raise ApiError("malformed_body", "Parts must be sent as they are, without a transfer encoding.")
        name = printable(_utf8(options[b"name"], None), 64)
        media_type = _utf8(parse_options_header(self._headers.get(b"content-type", b""))[0], name)
        base = name.partition("[")[0] if self._rules.brackets else name
        is_file = name in self._rules.file_limits and (
            b"filename" in options or name not in self._rules.text_fields
        )
        if not is_file and base not in self._rules.text_fields:
            raise ApiError("unknown_field", "There is no such field.", field=name)
        if is_file and b"filename" not in options:
            raise ApiError("invalid_value", "Send this field as a file (with a filename).", field=name)
        if name in self.files or (name in self.texts and name not in self._rules.repeatable):
            raise ApiError("duplicate_field", "This field may be given once only.", field=name)
        limit = self._settings.max_json_bytes if base in self._rules.long_texts else MAX_TEXT_BYTES
        if is_file:
            limit = self._rules.file_limits[name]
        self._part = part = _Part(name, is_file, media_type.lower(), limit)
        if is_file:
            part.file = self._new_file()

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        part = self._part
        assert part is not None
        part.size += end - start
        if part.size > part.limit:
            code = "file_too_large" if part.is_file else "too_long"
            raise ApiError(code, f"More than {part.limit} bytes.", field=part.name, limit=part.limit)
        if part.file is not None:
            part.file.write(data[start:end])
            part.hash.update(data[start:end])
        else:
            part.text += data[start:end]

    def on_part_end(self) -> None:
        part, self._part = self._part, None
        assert part is not None
        if part.file is None:
            self.texts.setdefault(part.name, []).append(_utf8(bytes(part.text), part.name))
            return
        part.file.flush()
        if part.size == 0:
            raise ApiError("empty_file", "The file is empty.", field=part.name)
        self.files[part.name] = ReceivedFile(part.file, part.size, part.hash.hexdigest(), part.declared_type)

    def on_end(self) -> None:
        self.complete = True


@asynccontextmanager
async def _deadline(seconds: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise ApiError(
            "upload_timeout",
            f"The request was not complete after {seconds:g} seconds.",
            limit=seconds,
            close=True,
        ) from error


def _declared_bytes(request: Request) -> int | None:
    """The length of the body, if the client says it."""
    declared = request.headers.get("content-length", "")
    return int(declared) if declared.isdecimal() else None


async def _capped_body(request: Request, limit: int) -> AsyncIterator[bytes]:
    """The body in chunks. Raises ApiError as soon as it is, or says it will be, longer than `limit` bytes."""
    too_large = ApiError("request_too_large", f"The request is larger than {limit} bytes.", limit=limit)
    if (_declared_bytes(request) or 0) > limit:
        raise too_large
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > limit:
            raise too_large
        yield chunk


async def receive_form(
    request: Request, new_file: NewFile, rules: FormRules, settings: Settings
) -> ReceivedForm:
    """Receive a multipart/form-data body. Raises ApiError, ClientDisconnect."""
    boundary = parse_options_header(request.headers.get("content-type", ""))[1].get(b"boundary")
    if not boundary:
        raise ApiError("malformed_body", "The multipart body names no boundary.")
    reader = _FormReader(partial(new_file, _declared_bytes(request)), rules, settings)
    callbacks = {name: getattr(reader, name) for name in dir(reader) if name.startswith("on_")}
    try:
        parser = MultipartParser(boundary, callbacks)  # type: ignore[arg-type]
        async with _deadline(settings.upload_timeout_s):
            async for chunk in _capped_body(request, settings.max_upload_bytes):
                parser.write(chunk)
        parser.finalize()
    except FormParserError as error:
        raise ApiError("malformed_body", "The multipart body is malformed.") from error
    if not reader.complete:
        raise ApiError("malformed_body", "The multipart body ends before its last boundary.")
    return ReceivedForm(reader.texts, reader.files)


async def receive_json(request: Request, settings: Settings) -> dict[str, object]:
    """Receive a JSON object. Raises ApiError, ClientDisconnect."""
    body = bytearray()
    async with _deadline(settings.upload_timeout_s):
        async for chunk in _capped_body(request, settings.max_json_bytes):
            body += chunk
    try:
        value = from_json(bytes(body), allow_inf_nan=False)
    except ValueError as error:
        raise ApiError("malformed_body", f"The body is not JSON: {printable(str(error))}") from error
    if not isinstance(value, dict):
        raise ApiError("malformed_body", "The body must be a JSON object.")
    return value


def decode_data_url(url: str, new_file: NewFile, limit: int, field_name: str) -> ReceivedFile:
    """Write the content of a `data:` URL to a new file. Raises ApiError naming the field."""
    head, comma, payload = url[len("data:") :].partition(",")
    if not comma:
        raise ApiError("invalid_value", "The data: URL has no comma.", field=field_name)
    media_type, *parameters = head.split(";")
    try:
        if parameters and parameters[-1].strip().lower() == "base64":
            content = base64.b64decode(payload, validate=True)
        else:
            content = unquote_to_bytes(payload)
    except (binascii.Error, ValueError) as error:
        raise ApiError("invalid_value", "The data: URL is not valid base64.", field=field_name) from error
    if not content:
        raise ApiError("empty_file", "The file is empty.", field=field_name)
    if len(content) > limit:
        raise ApiError("file_too_large", f"More than {limit} bytes.", field=field_name, limit=limit)
    file = new_file(len(content))
    file.write(content)
    file.flush()
    return ReceivedFile(file, len(content), hashlib.sha256(content).hexdigest(), media_type.strip().lower())


async def drain(request: Request) -> bool:
    """Read the rest of a refused request for a moment, so that the client gets to see the answer. True if it
    ended.
    """
    drained = 0
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            async for chunk in request.stream():
                drained += len(chunk)
                if drained > DRAIN_BYTES:
                    return False
    except (TimeoutError, ClientDisconnect, RuntimeError):
        # RuntimeError: the body had been read to its end already.
        return request._stream_consumed
    return True
