"""The limits for requests to this server, and the scopes and limits of the key that asks."""

from __future__ import annotations

from contract.request import GenerateFields
from server.access import Principal, Reader, ServicesOf
from server.keys import ANONYMOUS_OWNER
from server.openapi import PROBLEM, form_fields
from server.routing import Router
from server.schemas import FileLimits, KeyView, LimitsView
from server.services import Services

router = Router(prefix="/v1", tags=["models"], responses=PROBLEM)


@router.get("/limits", response_model=LimitsView, summary="Know what is accepted")
def get_limits(services: ServicesOf, principal: Reader) -> LimitsView:
    """The limits that a submit is checked against, so that a client can say so before it uploads."""
    return LimitsView(
        files=_file_limits(services),
        max_prompts=services.settings.max_prompts,
        max_prompt_chars=services.settings.max_prompt_chars,
        max_speech_chars=services.settings.max_speech_chars,
        max_clips=services.settings.max_clips,
        max_steps=services.settings.max_steps,
        max_dropped_frames=services.settings.max_dropped_frames,
        fields={name: form_fields()[name] for name in GenerateFields.model_fields},
        key=None if principal.owner == ANONYMOUS_OWNER else _key_view(principal),
    )


def _file_limits(services: Services) -> FileLimits:
    settings = services.settings
    return FileLimits(
        request_bytes=settings.max_upload_bytes,
        image_bytes=settings.max_image_bytes,
        image_pixels=settings.max_image_pixels,
        image_min_side=settings.min_image_side,
        audio_bytes=settings.max_audio_bytes,
        audio_seconds=settings.max_audio_seconds,
        audio_min_seconds=settings.min_audio_seconds,
        video_bytes=settings.max_video_bytes,
    )


def _key_view(principal: Principal) -> KeyView:
    return KeyView(
        id=principal.owner,
        scopes=sorted(principal.scopes),
        highest_priority=principal.highest_priority,
        limits=principal.limits.model_dump(),
    )
