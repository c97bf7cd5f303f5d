"""Checks a received submit against limits and checkpoint, and decodes its files in the sandbox."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from contract.card import CheckpointCard
from contract.job import Priority
from contract.params import GenerationParams
from contract.presets import check_preset, preset_defaults
from contract.request import FILE_FIELDS, SPOKEN_FILE, GenerateFields
from contract.resolve import check_files, check_prompts, frame_size, resolve
from contract.settings import Settings
from contract.warnings import JobWarning, warnings_about_frames, warnings_about_prompts
from jobs.cards import read_cards
from server.access import Principal
from server.decoding.decoded import DecodedFile
from server.decoding.formats import KIND_OF_FIELD
from server.decoding.sandbox import DecodeTask
from server.errors import ApiError, api_error_of, printable
from server.fetch import FetchRefused
from server.services import Services
from server.submit.kept import link
from server.submit.prompt_tokens import perhaps_cut, warnings_about_length
from server.submit.receive import Draft, Scratch
from server.submit.speak import check_speech, speak

STORED_NAME: Final = {
    "person_image": ("inputs/person.png", "image/png"),
    "product_image": ("inputs/product.png", "image/png"),
    "audio": ("inputs/speech.wav", "audio/wav"),
    "pose_video": ("inputs/pose.mp4", "video/mp4"),
}
THUMBNAIL: Final = ("inputs/thumbnail.jpg", "image/jpeg")
SAME_TYPES: Final = (
    frozenset({"image/jpeg", "image/jpg", "image/pjpeg", "image/mpo"}),
    frozenset({"image/png", "image/x-png", "image/apng"}),
    frozenset({"image/heic", "image/heif", "image/heic-sequence", "image/heif-sequence"}),
    frozenset({"image/avif", "image/avif-sequence"}),
    frozenset({"audio/wav", "audio/x-wav", "audio/wave", "audio/vnd.wave"}),
    frozenset({"audio/mpeg", "audio/mp3", "audio/x-mp3", "audio/x-mpeg", "audio/mpeg3"}),
    frozenset({"audio/flac", "audio/x-flac"}),
    frozenset({"audio/ogg", "application/ogg", "audio/opus", "audio/vorbis", "audio/x-ogg", "video/ogg"}),
    frozenset({"audio/aac", "audio/aacp", "audio/x-aac", "audio/x-hx-aac-adts"}),
    frozenset({"audio/aiff", "audio/x-aiff"}),
    frozenset(
        {
            *("audio/mp4", "audio/m4a", "audio/x-m4a", "audio/aac", "audio/x-aac"),
            *("video/mp4", "video/quicktime", "audio/3gpp", "video/3gpp", "audio/3gpp2", "video/3gpp2"),
        }
    ),
    frozenset({"video/webm", "audio/webm", "video/x-matroska", "audio/x-matroska"}),
)


@dataclass(frozen=True)
class Checked:
    """A request that can be rendered: all settings are resolved, and `folder` holds the decoded files."""

    folder: Path
    card: CheckpointCard
    params: GenerationParams
    warnings: tuple[JobWarning, ...]
    thumbnail: bytes


def choose_card(services: Services, name: str | None) -> CheckpointCard:
    """The checkpoint asked for, or the default one if `name` is None. Raises ApiError."""
    cards = read_cards(services.store)
    if not cards:
        raise ApiError(
            "no_checkpoint", "No checkpoint is known yet: a worker publishes its own when it starts."
        )
    # A store may know a small trained checkpoint from before it knew a large one.
    default = min(cards.values(), key=lambda card: (not card.trained, -card.max_pixels, card.name))
    if name is None:
        return default
    if name not in cards:
        known = ", ".join(sorted(cards))
        detail = f"No checkpoint has this name; choose one of: {known}."
        raise ApiError("unknown_model", detail, field="model", limit=known)
    return cards[name]


def check_fields(
    fields: GenerateFields, card: CheckpointCard, services: Services, principal: Principal
) -> None:
    """Check what depends on the server or on the checkpoint. Raises ApiError, FieldError."""
    settings = services.settings
    frame_size(fields, card)
    check_prompts_fit(fields.prompt, settings)
    check_preset(fields, card)
    _check_length(fields.negative_prompt or "", "negative_prompt", settings)
    if fields.num_inference_steps is not None and fields.num_inference_steps > settings.max_steps:
        detail = f"At most {settings.max_steps} steps on this server."
        raise ApiError("out_of_range", detail, field="num_inference_steps", limit=settings.max_steps)
    if fields.num_clips is not None and fields.num_clips > settings.max_clips:
        detail = f"At most {settings.max_clips} clips on this server."
        raise ApiError("out_of_range", detail, field="num_clips", limit=settings.max_clips)
    if fields.retention_s is not None and fields.retention_s > settings.retention_s:
        detail = f"This server keeps a finished job for at most {settings.retention_s} seconds."
        raise ApiError("out_of_range", detail, field="retention_s", limit=settings.retention_s)
    priority_of(fields.priority, principal)
    if fields.webhook_events is not None and fields.webhook_url is None:
        detail = "webhook_events without webhook_url: give both or neither."
        raise ApiError("missing_field", detail, field="webhook_url")


async def _check_webhook(fields: GenerateFields, services: Services) -> None:
    """Raise ApiError for an address that nothing could ever be delivered to."""
    if fields.webhook_url is not None:
        try:
            await services.fetcher.check(fields.webhook_url)
        except FetchRefused as error:
            raise api_error_of(error, "webhook_url") from error


def check_prompts_fit(prompts: Collection[str], settings: Settings) -> None:
    """Check the prompts of a video. Raises ApiError, FieldError."""
    if len(prompts) > settings.max_prompts:
        detail = f"At most {settings.max_prompts} prompts; the request has {len(prompts)}."
        raise ApiError("too_many", detail, field="prompt", limit=settings.max_prompts)
    check_prompts(prompts)
    for prompt in prompts:
        _check_length(prompt, "prompt", settings)


def _check_length(text: str, field: str, settings: Settings) -> None:
    if len(text) > settings.max_prompt_chars:
        detail = f"At most {settings.max_prompt_chars} characters; this text has {len(text)}."
        raise ApiError("too_long", detail, field=field, limit=settings.max_prompt_chars)


def check_clips(num_clips: int, settings: Settings) -> None:
    """Raises ApiError if the speech needs more clips than a video may have."""
    if num_clips > settings.max_clips:
        detail = (
            f"The speech needs {num_clips} clips, at most {settings.max_clips} are allowed: shorten it, or "
            "give num_clips to render its beginning."
        )
        raise ApiError("audio_too_long", detail, field="audio", limit=settings.max_clips)


def highest_allowed(wanted: Priority, principal: Principal) -> Priority:
    """The priority, or the highest that the key may have if that is lower."""
    order = [Priority.LOW, Priority.NORMAL, Priority.HIGH]
    return min(wanted, principal.highest_priority, key=order.index)


def priority_of(wanted: Priority | None, principal: Principal) -> Priority:
    """The priority of a request: as asked for, or normal, or the highest that the key may have.

    Raises ApiError if the request asks for more.
    """
    highest = highest_allowed(wanted or Priority.NORMAL, principal)
    if wanted is not None and highest is not wanted:
        detail = f"This key may ask for {highest.value!r} at most."
        raise ApiError("out_of_range", detail, field="priority", limit=highest.value)
    return highest


def check_declared_type(field: str, declared: str, found: str) -> None:
    """With strict_media_types, refuse a file whose declared type is wrong.

    A missing or general type declares nothing.
    """
    if declared in ("", "application/octet-stream", "binary/octet-stream", found):
        return
    if not any(declared in same and found in same for same in SAME_TYPES):
        detail = f"The file says it is {printable(declared, 60)}, but it is {found}."
        raise ApiError("media_type_mismatch", detail, field=field, limit=found)


def _begin(services: Services, model: str | None, space: Scratch) -> CheckpointCard:
    """What a check does on the disk first. Each way into a thread costs a busy server milliseconds."""
    card = choose_card(services, model)
    space.make_folder()
    return card


async def check(draft: Draft, services: Services, principal: Principal, space: Scratch) -> Checked:
    """Check a request, decode its files and resolve its settings. Raises ApiError, FieldError."""
    fields, settings = draft.fields, services.settings
    card = await space.on_disk(_begin, services, fields.model, space)
    check_fields(fields, card, services, principal)
    await _check_webhook(fields, services)
    check_files({*draft.files, *draft.kept}, card)
    check_speech(fields, SPOKEN_FILE in {*draft.files, *draft.kept}, settings)
    decoded = await _decode_all(draft, services, space)
    default_steps = preset_defaults(card, fields.preset).num_inference_steps
    if fields.num_inference_steps is None and default_steps > settings.max_steps:
        fields = fields.model_copy(update={"num_inference_steps": settings.max_steps})
    speech, dropped = decoded["audio"].speech_length, settings.max_dropped_frames
    params = resolve(fields, card, speech, dropped)
    long = perhaps_cut(_prompts(fields))
    check_clips(params.num_clips, settings)
    warnings = (
        *(warning for file in decoded.values() for warning in file.warnings),
        *warnings_about_frames(params, speech, dropped),
        *warnings_about_prompts(params),
        *(await asyncio.to_thread(warnings_about_length, long, card.name, services.store) if long else ()),
    )
    return Checked(space.folder, card, params, warnings, decoded["person_image"].thumbnail)


def _prompts(fields: GenerateFields) -> list[tuple[str, str]]:
    """All prompts with the fields that they came in."""
    negative = [("negative_prompt", fields.negative_prompt)] if fields.negative_prompt else []
    return [*(("prompt", prompt) for prompt in fields.prompt), *negative]


async def _decode_all(draft: Draft, services: Services, space: Scratch) -> dict[str, DecodedFile]:
    """Decode all files of a request, and the speech made from its text. Raises ApiError."""
    spoken = await speak(draft.fields, services, space)
    if spoken is None:
        return await _decode(draft, services, space)
    try:
        return await _decode(replace(draft, files={**draft.files, SPOKEN_FILE: spoken}), services, space)
    except ApiError as error:
        if error.field == SPOKEN_FILE:
            error.field = "speech_text"
        raise


async def _decode(draft: Draft, services: Services, space: Scratch) -> dict[str, DecodedFile]:
    fields = [field for field in FILE_FIELDS if field in draft.files]
    tasks = [
        DecodeTask(
            field, KIND_OF_FIELD[field], draft.files[field].content, space.folder / STORED_NAME[field][0]
        )
        for field in fields
    ]
    answers = await services.sandbox.decode(tasks, space.tenant) if tasks else []
    decoded = dict(zip(fields, answers, strict=True))
    if services.settings.strict_media_types:
        for field, file in decoded.items():
            check_declared_type(field, draft.files[field].declared_type, file.format)
    for field, kept in draft.kept.items():
        decoded[field] = await asyncio.to_thread(
            link, kept, field, space.folder / STORED_NAME[field][0], services
        )
    return decoded
