"""Gets speech for a text from the OpenAI-compatible server that the operator names."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from typing import Final

import httpx

from contract.request import GenerateFields
from contract.settings import Settings
from server.errors import ApiError, printable
from server.services import Services
from server.submit.multipart import ReceivedFile
from server.submit.receive import Scratch

log = logging.getLogger(__name__)
FIELD: Final = "speech_text"
_LONGEST_ERROR: Final = 65_536


def check_speech(fields: GenerateFields, audio_is_given: bool, settings: Settings) -> None:
    """Check what a request says about speech from text. Raises ApiError."""
    if fields.speech_text is None:
        if fields.voice is not None:
            raise ApiError("missing_field", "A voice needs a speech_text.", field=FIELD)
        return
    if settings.speech_url is None:
        detail = "This server makes no speech from text (COINTERACT_SPEECH_URL); send audio."
        raise ApiError("speech_not_offered", detail, field=FIELD)
    if audio_is_given:
        raise ApiError("conflicting_fields", "Give either audio or speech_text.", field=FIELD)
    if not fields.speech_text.strip():
        raise ApiError("invalid_value", "There is nothing to say.", field=FIELD)
    if len(fields.speech_text) > settings.max_speech_chars:
        raise ApiError("too_long", "Too many characters.", field=FIELD, limit=settings.max_speech_chars)
    if fields.voice is not None and fields.voice not in settings.speech_voices:
        known = ", ".join(settings.speech_voices)
        raise ApiError("invalid_value", "There is no such voice.", field="voice", limit=known)


def voice_of(fields: GenerateFields, settings: Settings) -> str | None:
    """The voice that says the text of a request; None if there is no text."""
    return None if fields.speech_text is None else fields.voice or settings.speech_voices[0]


async def speak(fields: GenerateFields, services: Services, space: Scratch) -> ReceivedFile | None:
    """The speech of a checked request's text; None if it has no text. Raises ApiError."""
    settings, voice = services.settings, voice_of(fields, services.settings)
    if voice is None or settings.speech_url is None:
        return None
    body: dict[str, object] = {
        "model": settings.speech_model,
        "input": fields.speech_text,
        "voice": voice,
        "response_format": "wav",
    }
    async with services.speaking.turn(space.tenant):
        try:
            async with asyncio.timeout(settings.speech_timeout_s):
                return await _ask(settings, body, space)
        except (TimeoutError, httpx.HTTPError) as error:
            log.error("the speech server %s: %s", settings.speech_url, str(error) or type(error).__name__)
            raise _away() from error


def _away() -> ApiError:
    return ApiError("speech_unavailable", "The speech server cannot be used at the moment; try again.")


async def _ask(settings: Settings, body: dict[str, object], space: Scratch) -> ReceivedFile:
    """Raises ApiError, httpx.HTTPError."""
    key, limit = settings.speech_api_key, settings.max_audio_bytes
    headers = {"Authorization": f"Bearer {key}"} if key is not None else {}
    url = f"{(settings.speech_url or '').rstrip('/')}/audio/speech"
    async with (
        httpx.AsyncClient(headers=headers, timeout=settings.speech_timeout_s, trust_env=False) as client,
        client.stream("POST", url, json=body) as answer,
    ):
        if answer.status_code != 200:
            raise await _refusal(answer)
        content, digest, size = await space.on_disk(space.new_file), hashlib.sha256(), 0
        async for block in answer.aiter_bytes():
            size += len(block)
            if size > limit:
                detail = f"The speech has more than {limit} bytes."
                raise ApiError("file_too_large", detail, field=FIELD, limit=limit)
            await space.on_disk(content.write, block)
            digest.update(block)
    if not size:
        raise ApiError("speech_refused", "The speech server made no sound of this text.", field=FIELD)
    await space.on_disk(content.flush)
    return ReceivedFile(content, size, digest.hexdigest())


async def _refusal(answer: httpx.Response) -> ApiError:
    """The error for an answer that is not speech. Raises httpx.HTTPError."""
    said = bytearray()
    async for block in answer.aiter_bytes():
        said += block
        if len(said) > _LONGEST_ERROR:
            break
    log.error(
        "the speech server answered %d: %s", answer.status_code, printable(said.decode(errors="replace"))
    )
    if answer.status_code not in (400, 413, 422):
        return _away()  # a wrong key or address is the operator's fault, not the request's
    try:
        message = json.loads(said)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = ""
    detail = "The speech server does not take this text or voice"
    return ApiError(
        "speech_refused", f"{detail}: {printable(str(message))}" if message else f"{detail}.", FIELD
    )
