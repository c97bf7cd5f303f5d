"""Reads a multipart/form-data body. Each part goes to a file or a text as it arrives, up to its own cap.

A file is written to a temporary file without a name, which is gone when the request ends. The name that the
client gave is not kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO, Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from contract.request import unknown_field
from server.errors import ApiError, printable

MAX_TEXT_BYTES: Final = 65_536
"""The most bytes of one text field. No valid text is so long: validation names the precise limit."""
MAX_PARTS: Final = 256


@dataclass(frozen=True)
class ReceivedFile:
    """A file as the client sent it. `declared_type` is its media type as the client says, or ""."""

    content: BinaryIO
    size: int
    sha256: str
    declared_type: str = ""


@dataclass(frozen=True)
class ReceivedForm:
    """The fields of a multipart body, in order of arrival."""

    texts: Mapping[str, list[str]]
    files: Mapping[str, ReceivedFile]


@dataclass(frozen=True)
class FormRules:
    """Which fields a form may have. `file_limits` gives the most bytes of each file field."""

    file_limits: Mapping[str, int]
    text_fields: frozenset[str]
    repeatable: frozenset[str] = frozenset()
    long_texts: frozenset[str] = frozenset()
    """Text fields that may hold a whole file, as a data: URL."""
    long_text_bytes: int = MAX_TEXT_BYTES
    brackets: bool = False
    """Whether the field `name[key]` is a part of the object `name`."""


@dataclass
class _Part:
    name: str
    is_file: bool
    declared_type: str
    limit: int
    unnamed: bool
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
    """The callbacks of the multipart parser. They turn parts into texts and files as the parts arrive."""

    def __init__(self, new_file: Callable[[], BinaryIO], rules: FormRules) -> None:
        self._new_file, self._rules = new_file, rules
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
            raise ApiError("too_many", f"The form has more than {MAX_PARTS} parts.", limit=MAX_PARTS)

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
            raise ApiError("malformed_body", "A part of the form has no name; each needs one.")
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
            raise unknown_field(name, self._rules.text_fields | self._rules.file_limits.keys())
        repeatable = name in self._rules.repeatable or (self._rules.brackets and name.endswith("[]"))
        if name in self.files or (name in self.texts and not repeatable):
            raise ApiError("duplicate_field", "The field is given twice; give it once.", field=name)
        limit = self._rules.long_text_bytes if base in self._rules.long_texts else MAX_TEXT_BYTES
        if is_file:
            limit = self._rules.file_limits[name]
        unnamed = not options.get(b"filename")
        self._part = part = _Part(name, is_file, media_type.lower(), limit, unnamed)
        if is_file:
            part.file = self._new_file()

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        part = self._part
        assert part is not None
        part.size += end - start
        if part.size > part.limit:
            code = "file_too_large" if part.is_file else "too_long"
            raise ApiError(
                code,
                f"The field has more than {part.limit} bytes; send fewer.",
                field=part.name,
                limit=part.limit,
            )
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
        if part.size == 0 and part.unnamed:
            return  # a browser's form with no file chosen
        if part.unnamed:
            raise ApiError("invalid_value", "Send this field as a file (with a filename).", field=part.name)
        if part.size == 0:
            raise ApiError("empty_file", "The file is empty.", field=part.name)
        self.files[part.name] = ReceivedFile(part.file, part.size, part.hash.hexdigest(), part.declared_type)

    def on_end(self) -> None:
        self.complete = True


async def in_place(work: Callable[[bytes], object], chunk: bytes) -> None:
    """Call `work` here and now."""
    work(chunk)


async def read_form(
    content_type: str,
    chunks: AsyncIterator[bytes],
    new_file: Callable[[], BinaryIO],
    rules: FormRules,
    run: Callable[[Callable[[bytes], object], bytes], Awaitable[object]],
) -> ReceivedForm:
    """The form that the chunks of a body hold. Raises ApiError, and what `chunks` raises.

    `run` calls a function that writes to files with a chunk: `in_place`, or elsewhere if that may take long.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise ApiError("malformed_body", "The multipart body names no boundary.")
    reader = _FormReader(new_file, rules)
    callbacks = {name: getattr(reader, name) for name in dir(reader) if name.startswith("on_")}
    try:
        parser = MultipartParser(boundary, callbacks)  # type: ignore[arg-type]
        async for chunk in chunks:
            await run(parser.write, chunk)
        parser.finalize()
    except FormParserError as error:
        raise ApiError("malformed_body", "The multipart body is malformed.") from error
    if not reader.complete:
        raise ApiError("malformed_body", "The multipart body ends before its last boundary.")
    return ReceivedForm(reader.texts, reader.files)
