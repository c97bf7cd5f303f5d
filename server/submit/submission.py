"""From a request body to a stored job: parse, check against limits and checkpoint, decode in the sandbox,
store durably.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails, from_json
from starlette.requests import Request

from contract.card import CheckpointCard
from contract.entries import Submitted
from contract.job import InputFiles, JobState, Priority, StoredFile, new_job_id, utcnow
from contract.params import Fit, GenerationParams
from contract.state import Job
from contract.video import CLIP_FRAMES, FPS, clips_of_frames, frames_of_speech
from jobs.cards import read_cards
from jobs.journal import JobNotFound, entry_key, job_prefix
from server.access import Principal
from server.decoding.formats import Kind
from server.decoding.sandbox import DecodedFile, DecodeTask
from server.errors import ApiError, printable
from server.idempotency import fingerprint
from server.schemas import FILE_FIELDS, REQUIRED_FILES, GenerateFields
from server.services import Services
from server.submit.uploads import FormRules, ReceivedFile, decode_data_url, receive_form, receive_json

log = logging.getLogger(__name__)

KIND_OF_FIELD: Final[Mapping[str, Kind]] = {
    "person_image": "image",
    "product_image": "image",
    "audio": "audio",
    "pose_video": "video",
}
STORED_NAME: Final = {
    "person_image": ("inputs/person.png", "image/png"),
    "product_image": ("inputs/product.png", "image/png"),
    "audio": ("inputs/speech.wav", "audio/wav"),
    "pose_video": ("inputs/pose.mp4", "video/mp4"),
}
FOLDERS_OF_JOB: Final = ("journal", "inputs")
SMALL_FILE_BYTES: Final = 2**20
SAME_TYPES: Final = (
    frozenset({"image/jpeg", "image/jpg", "image/pjpeg"}),
    frozenset({"image/png", "image/x-png"}),
    frozenset({"audio/wav", "audio/x-wav", "audio/wave", "audio/vnd.wave"}),
    frozenset({"audio/mpeg", "audio/mp3", "audio/x-mp3", "audio/x-mpeg", "audio/mpeg3"}),
    frozenset({"audio/flac", "audio/x-flac"}),
    frozenset({"audio/ogg", "application/ogg", "audio/opus", "audio/vorbis", "audio/x-ogg", "video/ogg"}),
    frozenset(
        {"audio/mp4", "audio/m4a", "audio/x-m4a", "audio/aac", "video/mp4", "video/quicktime", "audio/x-aac"}
    ),
    frozenset({"video/webm", "audio/webm", "video/x-matroska"}),
)
_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,20}")
_NUMBER: Final = re.compile(r"[+-]?([0-9]{1,20}(\.[0-9]{0,30})?|\.[0-9]{1,30})([eE][+-]?[0-9]{1,3})?")
_INTEGERS: Final = ("width", "height", "num_inference_steps", "seed", "num_clips", "retention_s")
_NUMBERS: Final = ("guidance_scale", "flow_shift", "product_scale")
_BRACKETED: Final = re.compile(r"metadata\[([^\[\]]{1,64})\]")
_CODE_OF_PYDANTIC: Final = {
    "missing": "missing_field",
    "extra_forbidden": "unknown_field",
    "control_characters": "control_characters",
    "string_too_long": "too_long",
    "too_long": "too_many",
    "dict_too_long": "too_many",
    "too_short": "missing_field",
}
_LIMITS_OF_PYDANTIC: Final = ("le", "lt", "ge", "gt", "max_length", "min_length", "expected", "pattern")


@dataclass(frozen=True)
class Draft:
    """A request that was received whole: its settings, checked by themselves, and its files, undecoded."""

    fields: GenerateFields
    files: Mapping[str, ReceivedFile]

    def fingerprint(self) -> str:
        return fingerprint(
            self.fields.model_dump(exclude_unset=True),
            {name: file.sha256 for name, file in self.files.items()},
        )


@dataclass(frozen=True)
class Checked:
    """A request that can be rendered: everything resolved, decoded files in `folder`."""

    folder: Path
    card: CheckpointCard
    params: GenerationParams
    seconds: float
    cost: float


# --- receiving ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scratch:
    """Where one submit is put together: the folder of the job to be, and files without names."""

    folder: Path
    _files: ExitStack

    def new_file(self, most_bytes: int | None = None) -> BinaryIO:
        """An empty file that nobody can open by name and that is gone when the request ends: in memory if it
        is known to stay small.
        """
        if most_bytes is not None and most_bytes <= SMALL_FILE_BYTES:
            return self._files.enter_context(os.fdopen(os.memfd_create("upload"), "w+b"))
        return self._files.enter_context(tempfile.TemporaryFile(dir=self.folder.parent))


@asynccontextmanager
async def scratch(services: Services) -> AsyncIterator[Scratch]:
    """Space for one submit; nothing of it is left afterwards, unless it became a job."""
    folder = services.store.scratch() / f"submit-{secrets.token_hex(8)}"
    with ExitStack() as files:
        try:
            for path in (folder, *(folder / name for name in FOLDERS_OF_JOB)):
                path.mkdir(mode=0o700)
            yield Scratch(folder, files)
        finally:
            if folder.exists():
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def file_limits(services: Services) -> dict[str, int]:
    settings = services.settings
    limits = {
        "image": settings.max_image_bytes,
        "audio": settings.max_audio_bytes,
        "video": settings.max_video_bytes,
    }
    return {field: limits[kind] for field, kind in KIND_OF_FIELD.items()}


async def receive(request: Request, services: Services, scratch: Scratch) -> Draft:
    """Take the body in, as multipart or JSON. Raises ApiError, ClientDisconnect."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == "multipart/form-data":
        texts = frozenset(GenerateFields.model_fields)
        bracketed = FormRules(file_limits(services), texts, frozenset({"prompt"}))
        form = await receive_form(request, scratch.new_file, bracketed, services.settings)
        values, files = from_form(form.texts), dict(form.files)
    elif media_type == "application/json":
        async with services.json_slots:
            values = await receive_json(request, services.settings)
            urls = {field: values.pop(field) for field in FILE_FIELDS if values.get(field) is not None}
            files = await from_urls(urls, services, scratch)
    else:
        raise ApiError(
            "unsupported_content_type",
            "Send multipart/form-data or application/json.",
            field="Content-Type",
            limit="multipart/form-data, application/json",
        )
    return draft_of(values, files)


def draft_of(values: Mapping[str, Any], files: Mapping[str, ReceivedFile]) -> Draft:
    """The checked settings with their files. Raises ApiError."""
    try:
        fields = GenerateFields.model_validate(values)
    except ValidationError as error:
        raise _of_pydantic(error.errors()[0]) from error
    for field in REQUIRED_FILES:
        if field not in files:
            raise ApiError("missing_field", "This file is needed.", field=field)
    return Draft(fields, files)


def _of_pydantic(error: ErrorDetails) -> ApiError:
    kind, context = error["type"], error.get("ctx", {})
    code = _CODE_OF_PYDANTIC.get(kind)
    limit = next((context[name] for name in _LIMITS_OF_PYDANTIC if name in context), None)
    if code is None:
        code = "out_of_range" if kind.endswith(("_than", "_equal")) else "invalid_value"
    field = ".".join(str(part) for part in error["loc"] if part != "[key]")
    return ApiError(code, printable(error["msg"]), field=printable(field, 100) or None, limit=limit)


def from_form(texts: Mapping[str, list[str]]) -> dict[str, Any]:
    """Form texts as the JSON values they stand for. What is no number stays a text, for the strict model to
    refuse.
    """
    values: dict[str, Any] = {}
    for name, given in texts.items():
        text = given[0]
        if name == "prompt":
            values[name] = given
        elif name in _INTEGERS and _INTEGER.fullmatch(text):
            values[name] = int(text)
        elif name in _NUMBERS and _NUMBER.fullmatch(text):
            values[name] = float(text)
        elif name == "audio_face_mask" and text in ("true", "false"):
            values[name] = text == "true"
        elif name == "metadata":
            values[name] = json_object(text, name)
        else:
            values[name] = text
    return values


def json_object(text: str, field: str) -> object:
    """A JSON text as what it stands for. Raises ApiError naming the field."""
    try:
        return from_json(text)
    except ValueError as error:
        raise ApiError("invalid_value", "Expected JSON.", field=field) from error


async def from_urls(
    urls: Mapping[str, object], services: Services, scratch: Scratch
) -> dict[str, ReceivedFile]:
    limits = file_limits(services)
    files = {}
    for field, url in urls.items():
        if not isinstance(url, str):
            raise ApiError("invalid_value", "Expected a data: or https: URL.", field=field)
        if url[:5].lower() == "data:":
            files[field] = decode_data_url(url, scratch.new_file, limits[field], field)
        elif url[:6].lower() == "https:":
            files[field] = await services.fetcher.fetch(url, scratch.new_file(), limits[field], field)
        else:
            raise ApiError("invalid_value", "Expected a data: or https: URL.", field=field)
    return files


# --- checking -----------------------------------------------------------------------------------------------


def choose_card(services: Services, name: str | None) -> tuple[CheckpointCard, bool]:
    """The checkpoint asked for, or the default one; and whether it is the default. Raises ApiError."""
    cards = read_cards(services.store)
    if not cards:
        raise ApiError(
            "no_checkpoint", "No checkpoint is known yet: a worker publishes its own when it starts."
        )
    # A store may know a small trained checkpoint from before it knew a large one.
    default = min(cards.values(), key=lambda card: (not card.trained, -card.max_pixels, card.name))
    if name is None:
        return default, True
    if name not in cards:
        known = ", ".join(sorted(cards))
        raise ApiError("unknown_model", "There is no such checkpoint.", field="model", limit=known)
    return cards[name], cards[name] == default


def _size(fields: GenerateFields, card: CheckpointCard) -> tuple[int, int]:
    if fields.size is not None and (fields.width is not None or fields.height is not None):
        raise ApiError("conflicting_fields", "Give either size, or width and height.", field="size")
    if fields.size is None and fields.width is None and fields.height is None:
        width, height = (int(side) for side in card.sizes[0].split("x"))
        return width, height
    if fields.size is not None:
        width, height = (int(side) for side in fields.size.split("x"))
        names = ("size", "size")
    elif fields.width is None or fields.height is None:
        missing = "width" if fields.width is None else "height"
        raise ApiError("missing_field", "Width and height belong together.", field=missing)
    else:
        width, height, names = fields.width, fields.height, ("width", "height")
    for side, name in zip((width, height), names, strict=True):
        if side % 16:
            raise ApiError("unsupported_size", f"{side} is not a multiple of 16.", field=name, limit=16)
        if side < card.min_side:
            raise ApiError(
                "unsupported_size",
                f"{side} is too small for this checkpoint.",
                field=name,
                limit=card.min_side,
            )
    if width * height > card.max_pixels:
        detail = f"{width} × {height} pixels are too many for this checkpoint."
        raise ApiError("unsupported_size", detail, field=names[1], limit=card.max_pixels)
    return width, height


def check_fields(
    fields: GenerateFields, card: CheckpointCard, services: Services, principal: Principal
) -> None:
    """Everything about the settings that depends on the server and the checkpoint. Raises ApiError."""
    settings = services.settings
    _size(fields, card)
    if len(fields.prompt) > settings.max_prompts:
        raise ApiError("too_many", "Too many prompts.", field="prompt", limit=settings.max_prompts)
    for prompt in fields.prompt:
        if not prompt.strip():
            raise ApiError("invalid_value", "A prompt is empty.", field="prompt")
    for name, texts in (("prompt", fields.prompt), ("negative_prompt", [fields.negative_prompt or ""])):
        if any(len(text) > settings.max_prompt_chars for text in texts):
            raise ApiError("too_long", "Too many characters.", field=name, limit=settings.max_prompt_chars)
    if fields.num_inference_steps is not None and fields.num_inference_steps > settings.max_steps:
        raise ApiError(
            "out_of_range", "Too many steps.", field="num_inference_steps", limit=settings.max_steps
        )
    if fields.num_clips is not None and fields.num_clips > settings.max_clips:
        raise ApiError("out_of_range", "Too many clips.", field="num_clips", limit=settings.max_clips)
    if fields.retention_s is not None and fields.retention_s > settings.retention_s:
        raise ApiError("out_of_range", "Too long to keep.", field="retention_s", limit=settings.retention_s)
    order = [Priority.LOW, Priority.NORMAL, Priority.HIGH]
    if order.index(fields.priority) > order.index(principal.highest_priority):
        highest = principal.highest_priority.value
        raise ApiError(
            "out_of_range", "This key may not ask for that priority.", field="priority", limit=highest
        )
    if fields.webhook_url is not None:
        services.check_webhook_url(fields.webhook_url)


def _check_declared_type(field: str, declared: str, found: str) -> None:
    """A file that says it is something specific must be that. No type, or a general one, claims nothing."""
    if declared in ("", "application/octet-stream", "binary/octet-stream", found):
        return
    if not any(declared in same and found in same for same in SAME_TYPES):
        detail = f"The file says it is {printable(declared, 60)}, but it is {found}."
        raise ApiError("media_type_mismatch", detail, field=field, limit=found)


async def check(draft: Draft, services: Services, principal: Principal, folder: Path) -> Checked:
    """Check a request against server and checkpoint, decode its files, resolve its settings."""
    fields, settings = draft.fields, services.settings
    card, _ = await asyncio.to_thread(choose_card, services, fields.model)
    check_fields(fields, card, services, principal)
    if "pose_video" in draft.files and not card.pose:
        raise ApiError("pose_not_supported", "This checkpoint takes no pose video.", field="pose_video")
    decoded = await _decode(draft, services, folder)
    speech = decoded["audio"]
    frames = frames_of_speech(speech.samples, speech.rate)
    needed = clips_of_frames(frames)
    num_clips = min(needed, fields.num_clips or needed)
    if num_clips > settings.max_clips:
        detail = f"The speech needs {num_clips} clips; give num_clips to render its beginning."
        raise ApiError("audio_too_long", detail, field="audio", limit=settings.max_clips)
    width, height = _size(fields, card)
    steps = fields.num_inference_steps or min(card.defaults.num_inference_steps, settings.max_steps)
    params = GenerationParams(
        prompts=tuple(fields.prompt),
        negative_prompt=_or(fields.negative_prompt, card.defaults.negative_prompt),
        width=width,
        height=height,
        num_inference_steps=steps,
        guidance_scale=_or(fields.guidance_scale, card.defaults.guidance_scale),
        flow_shift=_or(fields.flow_shift, card.defaults.flow_shift),
        product_scale=fields.product_scale,
        seed=secrets.randbelow(2**31) if fields.seed is None else fields.seed,
        num_clips=num_clips,
        num_frames=min(frames, num_clips * CLIP_FRAMES),
        fit=fields.fit or (Fit.STRETCH if fields.preset == "parity" else Fit.COVER),
        audio_face_mask=fields.audio_face_mask,
        preset=fields.preset,
    )
    cost = num_clips * steps * width * height / 1e6
    return Checked(folder, card, params, params.num_frames / FPS, cost)


def _or(given: Any, default: Any) -> Any:
    return default if given is None else given


async def _decode(draft: Draft, services: Services, folder: Path) -> dict[str, DecodedFile]:
    tasks: Sequence[DecodeTask] = [
        DecodeTask(field, KIND_OF_FIELD[field], draft.files[field].content, folder / STORED_NAME[field][0])
        for field in FILE_FIELDS
        if field in draft.files
    ]
    decoded = dict(zip((task.field for task in tasks), await services.sandbox.decode(tasks), strict=True))
    for field, file in decoded.items():
        _check_declared_type(field, draft.files[field].declared_type, file.format)
    return decoded


# --- storing ------------------------------------------------------------------------------------------------


def _stored(folder: Path, field: str) -> StoredFile | None:
    name, media_type = STORED_NAME[field]
    path = folder / name
    if not path.exists():
        return None
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return StoredFile(name=name, sha256=digest, size=path.stat().st_size, media_type=media_type)


def _store(
    job_id: str,
    draft: Draft,
    checked: Checked,
    services: Services,
    principal: Principal,
    claim: str | None = None,
) -> Job:
    """Write entry 0 beside the inputs, move the folder to its place: from then on the job is safe."""
    files = {field: _stored(checked.folder, field) for field in FILE_FIELDS}
    submitted = Submitted(
        at=utcnow(),
        owner=principal.owner,
        checkpoint=checked.card.name,
        trained=checked.card.trained,
        params=checked.params,
        inputs=InputFiles.model_validate(files),
        priority=draft.fields.priority,
        metadata=draft.fields.metadata,
        webhook_url=draft.fields.webhook_url,
        retention_s=draft.fields.retention_s or services.settings.retention_s,
        cost=checked.cost,
        max_running=principal.limits.max_running,
        idempotency_claim=claim,
    )
    entry = checked.folder / Path(entry_key(job_id, 0)).relative_to(job_prefix(job_id))
    entry.write_text(submitted.model_dump_json())
    after = [] if claim is None else [claim]
    services.store.adopt_folder(checked.folder, job_prefix(job_id), after=after)
    job = Job(id=job_id, sequence=0, submitted=submitted, state=JobState.QUEUED)
    services.index.put(job)
    services.hints.announce(job)
    return job


def _store_once(
    key: str, draft: Draft, checked: Checked, services: Services, principal: Principal
) -> tuple[Job, bool]:
    """Store under the id that the idempotency key stands for, unless that has been done. Also says whether we
    did it.
    """
    keys = services.idempotency
    job_id = keys.claim(principal.owner, key, draft.fingerprint(), new_job_id())
    try:
        job, created = services.journal.read(job_id), False
    except JobNotFound as error:
        if keys.is_gone(principal.owner, key):
            detail = "The job of this Idempotency-Key was deleted or has expired."
            raise ApiError("idempotent_job_gone", detail, field="Idempotency-Key") from error
        try:
            claim = keys.claim_key(principal.owner, key)
            job, created = _store(job_id, draft, checked, services, principal, claim), True
        except FileExistsError:
            job, created = services.journal.read(job_id), False
    return job, created


async def store(
    draft: Draft, checked: Checked, key: str | None, services: Services, principal: Principal
) -> tuple[Job, bool]:
    """Durably store the job and announce it. Also says whether it is new, or known by its key."""
    if key is None:
        return await asyncio.to_thread(_store, new_job_id(), draft, checked, services, principal), True
    return await asyncio.to_thread(_store_once, key, draft, checked, services, principal)


def known_job(key: str, draft: Draft, services: Services, principal: Principal) -> Job | None:
    """The job that this very request has made before, if it has. Raises ApiError if the key was used
    otherwise.
    """
    if not services.idempotency.known(principal.owner, key):
        return None
    job_id = services.idempotency.claim(principal.owner, key, draft.fingerprint(), new_job_id())
    try:
        return services.journal.read(job_id)
    except JobNotFound:
        return None
