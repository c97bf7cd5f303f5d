"""Appends speech to that of a job."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final

from contract.params import GenerationParams
from contract.settings import Settings
from contract.video import FPS, frames_of_speech
from jobs.kept_files import KeptFile
from server.decoding.decoded import DecodedFile
from server.decoding.riff import read_parts
from server.decoding.sandbox import DecodeTask
from server.services import Services
from server.submit.check import STORED_NAME, check_declared_type
from server.submit.kept import link
from server.submit.multipart import ReceivedFile
from server.submit.receive import Scratch

_COPY_BYTES: Final = 2**20


AddedFile = ReceivedFile | KeptFile


def received_hash(added: AddedFile) -> str:
    """SHA-256 of the file as the client sent it."""
    return added.sha256 if isinstance(added, ReceivedFile) else added.received_sha256


async def join_speech(
    before: Path, params: GenerationParams, added: AddedFile, services: Services, space: Scratch
) -> DecodedFile:
    """Join a job's speech with the added one in a file of the new job. Raises ApiError.

    Of the speech in `before`, the part is used that a video of these settings used. Rate and channels are
    those of `before`.
    """
    second, whole = space.folder / "added.wav", space.folder / STORED_NAME["audio"][0]
    try:
        if isinstance(added, ReceivedFile):
            (decoded,) = await services.sandbox.decode(
                [DecodeTask("audio", "audio", added.content, second)], space.tenant
            )
            if services.settings.strict_media_types:
                check_declared_type("audio", added.declared_type, decoded.format)
        else:
            await asyncio.to_thread(link, added, "audio", second, services)
        joined = await space.on_disk(_join, before, second, params, services.settings, space.new_file)
        # The decoder reads recordings one behind the other, and brings the later to the first one's form.
        (decoded,) = await services.sandbox.decode(
            [DecodeTask("audio", "audio", joined, whole)], space.tenant
        )
        return decoded
    finally:
        second.unlink(missing_ok=True)


def _join(
    before: Path, second: Path, params: GenerationParams, settings: Settings, new_file: Callable[[], BinaryIO]
) -> BinaryIO:
    """A new file with the used part of one recording, followed by all of another."""
    joined = new_file()
    with before.open("rb") as first, second.open("rb") as behind:
        _copy_used(first, params, settings, joined)
        _copy(behind, joined)
    joined.flush()
    return joined


def _copy_used(source: BinaryIO, params: GenerationParams, settings: Settings, target: BinaryIO) -> None:
    """Copy a canonical WAV without the part that is beyond the end of the video.

    A part no longer than the frames that a video may drop is copied too. More is left over only if
    `num_clips` asked for just the beginning.
    """
    (part,) = read_parts(source)
    samples = (part.stop - part.start) // part.frame_bytes
    if frames_of_speech(samples, part.rate) - params.num_frames > settings.max_dropped_frames:
        samples = params.num_frames * part.rate // FPS
    size = samples * part.frame_bytes
    source.seek(0)
    head = bytearray(source.read(part.start))
    struct.pack_into("<I", head, 4, part.start - 8 + size)  # of the file
    struct.pack_into("<I", head, part.start - 4, size)  # of its sound
    target.write(head)
    _copy(source, target, size)


def _copy(source: BinaryIO, target: BinaryIO, size: int | None = None) -> None:
    left = size
    while block := source.read(_COPY_BYTES if left is None else min(left, _COPY_BYTES)):
        target.write(block)
        left = None if left is None else left - len(block)
