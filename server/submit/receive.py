"""Receives a submit: streams its body to disk, under caps and a deadline, and makes a `Draft` of it."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from dataclasses import field as member
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, TypeVar
from urllib.parse import unquote_to_bytes

from starlette.requests import ClientDisconnect, Request

from contract.form import REPEATABLE, values_of_form
from contract.request import (
    FILE_FIELDS,
    PARAMS_FIELD,
    REQUIRED_FILES,
    SPOKEN_FILE,
    FieldError,
    GenerateFields,
    fields_of,
)
from contract.settings import Settings
from jobs.kept_files import FILE_ID, KeptFile
from server.body import capped_body, declared_bytes
from server.decoding.formats import KIND_OF_FIELD, Kind
from server.errors import ApiError, api_error_of
from server.fetch import Fetcher, FetchError
from server.idempotency import fingerprint
from server.services import Services
from server.shares import Turns
from server.submit.json_body import parse_object
from server.submit.multipart import FormRules, ReceivedFile, ReceivedForm, in_place, read_form

Result = TypeVar("Result")

INPUTS: Final = "inputs"
SUBMIT_FOLDER: Final = "submit-"
"""What the names of a submit's folder in scratch begin with."""
SMALL_FILE_BYTES: Final = 2**20
PERCENT_CODED_BYTES: Final = 2**18
"""Largest data: URL that is not base64, in characters. Decoding one takes a hundred times as long."""
DRAIN_BYTES: Final = 16 * 2**20
DRAIN_SECONDS: Final = 2.0


@dataclass(frozen=True)
class Draft:
    """A request that was received whole: its settings, checked by themselves, and its undecoded files."""

    fields: GenerateFields
    files: Mapping[str, ReceivedFile]
    references: Mapping[str, str] = member(default_factory=dict)
    """Ids of kept files, by field."""
    kept: Mapping[str, KeptFile] = member(default_factory=dict)
    """The kept files that `references` names, by field."""

    def received(self) -> dict[str, str]:
        """SHA-256 of each file as it was sent, by field, whether in this request or kept before."""
        kept = {name: file.received_sha256 for name, file in self.kept.items()}
        return kept | {name: file.sha256 for name, file in self.files.items()}

    def fingerprint(self) -> str:
        return fingerprint(self.fields.model_dump(exclude_unset=True), self.received())


def fits_memory(most_bytes: int | None) -> bool:
    """Whether a file of at most so many bytes is kept in memory.

    Other files are on a disk, which may be slow, so only threads may touch them.
    """
    return sys.platform == "linux" and most_bytes is not None and most_bytes <= SMALL_FILE_BYTES


class Scratch:
    """The place where a submit is put together: the folder that may become the job, and files without names.

    The submit uses the share of `tenant`.
    """

    def __init__(self, folder: Path, tenant: str, disk: Turns) -> None:
        self.folder, self.tenant = folder, tenant
        self._disk, self._files = disk, ExitStack()
        self._has_folder = self._has_files_on_disk = False

    async def on_disk(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """Run `work`, which touches the disk, in a thread in the tenant's turn. Returns its result."""
        async with self._disk.turn(self.tenant):
            return await asyncio.to_thread(work, *arguments)

    def make_folder(self) -> None:
        """Make the folder that may become the job, if it is not there. It touches the disk."""
        self._has_folder = True
        for path in (self.folder, self.folder / INPUTS):
            path.mkdir(mode=0o700, exist_ok=True)

    def folder_became_a_job(self) -> None:
        """Note that the folder is not ours any more."""
        self._has_folder = False

    def new_file(self, most_bytes: int | None = None) -> BinaryIO:
        """An empty file without a name, which is gone when the request ends. `fits_memory` says where."""
        if fits_memory(most_bytes):
            return self._files.enter_context(os.fdopen(os.memfd_create("upload"), "w+b"))
        self._has_files_on_disk = True
        return self._files.enter_context(tempfile.TemporaryFile(dir=self.folder.parent))

    async def clear(self) -> None:
        """Forget all that did not become a job."""
        if self._has_folder or self._has_files_on_disk:
            await self.on_disk(self._clear)
        else:
            self._files.close()

    def _clear(self) -> None:
        self._files.close()
        if self._has_folder:
            shutil.rmtree(self.folder, ignore_errors=True)


@asynccontextmanager
async def scratch(services: Services, tenant: str) -> AsyncIterator[Scratch]:
    """Space for one submit. Afterwards nothing of it is left, unless it became a job."""
    space = Scratch(
        services.store.scratch() / f"{SUBMIT_FOLDER}{secrets.token_hex(8)}", tenant, services.disk
    )
    try:
        yield space
    finally:
        await space.clear()


def kind_limits(settings: Settings) -> dict[Kind, int]:
    """The most bytes of a file of each kind."""
    return {
        "image": settings.max_image_bytes,
        "audio": settings.max_audio_bytes,
        "video": settings.max_video_bytes,
    }


def file_limits(services: Services) -> dict[str, int]:
    """The most bytes of a file, by field."""
    limits = kind_limits(services.settings)
    return {field: limits[kind] for field, kind in KIND_OF_FIELD.items()}


def body_type(request: Request) -> Literal["multipart/form-data", "application/json"]:
    """The media type of a submit's body. Raises ApiError for any other type."""
    match request.headers.get("content-type", "").partition(";")[0].strip().lower():
        case "multipart/form-data":
            return "multipart/form-data"
        case "application/json":
            return "application/json"
    accepted = "multipart/form-data, application/json"
    detail = "Send multipart/form-data or application/json."
    raise ApiError("unsupported_content_type", detail, field="Content-Type", limit=accepted)


async def receive(request: Request, services: Services, scratch: Scratch) -> Draft:
    """Receive a body, as multipart or JSON. Raises ApiError, FieldError, ClientDisconnect."""
    if body_type(request) == "multipart/form-data":
        texts = frozenset({*GenerateFields.model_fields, PARAMS_FIELD, *FILE_FIELDS})
        rules = FormRules(file_limits(services), texts, REPEATABLE)
        form = await receive_form(request, scratch, rules, services.settings)
        given = {name: texts[0] for name, texts in form.texts.items() if name in FILE_FIELDS and texts[0]}
        values = values_of_form({name: form.texts[name] for name in form.texts if name not in FILE_FIELDS})
        files = {**form.files, **await from_urls(given, services, scratch)}
    else:
        values, files = await receive_json(request, services, scratch, take_urls)
    return draft_of(values, files)


def take_urls(values: dict[str, Any], fields: Collection[str] = FILE_FIELDS) -> dict[str, object]:
    """Take the URLs of files out of a JSON submit."""
    given = {field: values.pop(field, None) for field in fields}
    return {field: url for field, url in given.items() if url is not None}


GivenFile = ReceivedFile | str
"""A file, or the id of a kept one."""


def draft_of(values: Mapping[str, Any], files: Mapping[str, GivenFile]) -> Draft:
    """The checked settings with their files. Raises FieldError."""
    fields = fields_of(values)
    for field in REQUIRED_FILES:
        is_spoken = field == SPOKEN_FILE and fields.speech_text is not None
        if field not in files and not is_spoken:
            raise FieldError("missing_field", "The request has no file in this field; send one.", field)
    received = {field: file for field, file in files.items() if isinstance(file, ReceivedFile)}
    references = {field: file for field, file in files.items() if isinstance(file, str)}
    return Draft(fields, received, references)


async def receive_form(
    request: Request, scratch: Scratch, rules: FormRules, settings: Settings
) -> ReceivedForm:
    """Receive a multipart/form-data body. Raises ApiError, ClientDisconnect."""
    declared = declared_bytes(request)
    new_file = partial(scratch.new_file, declared)
    run = in_place if fits_memory(declared) else scratch.on_disk
    chunks = capped_body(request, settings.max_upload_bytes)
    return await read_form(request.headers.get("content-type", ""), chunks, new_file, rules, run)


TakeUrls = Callable[[dict[str, Any]], Mapping[str, object]]
"""Takes the URLs of files, by field, out of the values of a request."""


async def receive_json(
    request: Request, services: Services, scratch: Scratch, take_urls: TakeUrls
) -> tuple[dict[str, Any], dict[str, GivenFile]]:
    """Receive a JSON object: its values, and the files that it names. Raises ApiError, ClientDisconnect."""
    declared = declared_bytes(request)
    in_memory = fits_memory(declared)
    body = scratch.new_file(declared) if in_memory else await scratch.on_disk(scratch.new_file)
    async for chunk in capped_body(request, services.settings.max_json_bytes):
        if in_memory:
            body.write(chunk)
        else:
            await scratch.on_disk(body.write, chunk)

    def read() -> tuple[dict[str, Any], Mapping[str, object], dict[str, GivenFile]]:
        body.seek(0)
        values = parse_object(body.read())
        urls = take_urls(values)
        return values, *_split(urls, services, scratch)

    async with services.parsing.turn(scratch.tenant):  # held while we work, not while a client is slow
        values, links, files = await asyncio.to_thread(read)
    return values, files | await _fetch_all(links, services, scratch)


async def from_urls(urls: Mapping[str, object], services: Services, scratch: Scratch) -> dict[str, GivenFile]:
    """The files behind data: and https: URLs, and the ids of kept ones, by field. Raises ApiError."""
    links, files = await asyncio.to_thread(_split, urls, services, scratch)
    return files | await _fetch_all(links, services, scratch)


def _split(
    urls: Mapping[str, object], services: Services, scratch: Scratch
) -> tuple[dict[str, object], dict[str, GivenFile]]:
    """The https: URLs, and the files of the data: URLs with the ids of kept ones."""
    limits = file_limits(services)
    schemes = ("https", "http") if services.fetcher.private.any else ("https",)
    links: dict[str, object] = {}
    files: dict[str, GivenFile] = {}
    for field, url in urls.items():
        if isinstance(url, str) and url[:5].lower() == "data:":
            files[field] = decode_data_url(url, scratch, limits[field], field)
        elif isinstance(url, str) and url.partition(":")[0].lower() in schemes:
            links[field] = url
        elif isinstance(url, str) and FILE_ID.fullmatch(url):
            files[field] = url
        else:
            detail = "Expected a file, a data: or https: URL, or the id of a kept file."
            raise ApiError("invalid_value", detail, field=field)
    return links, files


async def _fetch_all(
    links: Mapping[str, object], services: Services, scratch: Scratch
) -> dict[str, ReceivedFile]:
    limits = file_limits(services)
    return {
        field: await _fetched(str(url), scratch, services.fetcher, limits[field], field)
        for field, url in links.items()
    }


async def _fetched(url: str, scratch: Scratch, fetcher: Fetcher, limit: int, field: str) -> ReceivedFile:
    content = await scratch.on_disk(scratch.new_file)
    try:
        fetched = await fetcher.fetch(url, content, limit)
    except FetchError as error:
        raise api_error_of(error, field) from error
    return ReceivedFile(content, fetched.size, fetched.sha256, fetched.media_type)


def decode_data_url(url: str, scratch: Scratch, limit: int, field_name: str) -> ReceivedFile:
    """Write the content of a `data:` URL to a new file. Raises ApiError naming the field."""
    head, comma, payload = url[len("data:") :].partition(",")
    if not comma:
        raise ApiError("invalid_value", "The data: URL has no comma.", field=field_name)
    media_type, *parameters = head.split(";")
    try:
        if parameters and parameters[-1].strip().lower() == "base64":
            content = base64.b64decode(payload, validate=True)
        elif len(payload) > PERCENT_CODED_BYTES:
            detail = "A data: URL of this length must be base64."
            raise ApiError("file_too_large", detail, field=field_name, limit=PERCENT_CODED_BYTES)
        else:
            content = unquote_to_bytes(payload)
    except (binascii.Error, ValueError) as error:
        raise ApiError("invalid_value", "The data: URL is not valid base64.", field=field_name) from error
    if not content:
        raise ApiError("empty_file", "The file is empty.", field=field_name)
    if len(content) > limit:
        raise ApiError("file_too_large", f"More than {limit} bytes.", field=field_name, limit=limit)
    file = scratch.new_file(len(content))
    file.write(content)
    file.flush()
    return ReceivedFile(file, len(content), hashlib.sha256(content).hexdigest(), media_type.strip().lower())


async def drain(request: Request) -> bool:
    """Read the rest of a refused request for a moment, so that the client gets to see the answer.

    Returns whether the request has ended.
    """
    drained = 0
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            async for chunk in request.stream():
                drained += len(chunk)
                if drained > DRAIN_BYTES:
                    return False
    except (TimeoutError, ApiError, ClientDisconnect, RuntimeError):
        # ApiError: the body is late. starlette raises RuntimeError if it was read to its end before.
        return request._stream_consumed
    return True
