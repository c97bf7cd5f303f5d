"""Decoding of PCM in WAV, which is what most requests bring: no codec, nothing but arithmetic."""

from __future__ import annotations

from typing import BinaryIO, Final

import numpy as np

from contract.choices import WarningCode
from server.decoding.formats import Limits, RejectedFileError
from server.decoding.riff import WavPart, read_parts
from server.decoding.track import BLOCK_SAMPLES, SpeechWriter

_FLOAT: Final = 3


def _samples(data: bytes, tag: int, bits: int) -> np.ndarray:
    """(N,) int16, or float32 around ±1."""
    if tag == _FLOAT:
        return np.frombuffer(data, f"<f{bits // 8}").astype(np.float32)
    if bits == 8:  # the only unsigned one
        return (np.frombuffer(data, np.uint8).astype(np.int16) - np.int16(128)) * np.int16(256)
    if bits == 16:
        return np.frombuffer(data, "<i2")
    if bits == 24:
        wide = np.zeros((len(data) // 3, 4), np.uint8)  # in the upper three bytes of four
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        data = wide.tobytes()
    return (np.frombuffer(data, "<i4") / 2**31).astype(np.float32)


def warn_if_cut(missing_bytes: int, writer: SpeechWriter) -> None:
    if missing_bytes:
        writer.warn(
            WarningCode.SPEECH_MAYBE_CUT,
            f"The header announces {missing_bytes} more bytes of speech than the file holds.",
        )


def write_part(source: BinaryIO, part: WavPart, writer: SpeechWriter) -> None:
    """Append one plain part. Raises RejectedFileError."""
    for block in part.blocks(source, BLOCK_SAMPLES):
        writer.write(_samples(block, part.tag, part.bits).reshape(-1, part.channels).T, part.rate)
    warn_if_cut(part.missing_bytes, writer)


def decode_wav(source: BinaryIO, target: BinaryIO, kind: str, limits: Limits) -> dict[str, object]:
    """The canonical speech out of a WAV of mono or stereo PCM. Raises RejectedFileError."""
    writer = SpeechWriter(target, limits)
    for part in read_parts(source):
        if not part.is_plain:
            raise RejectedFileError("undecodable_file", f"The {kind} speech is damaged.")
        write_part(source, part, writer)
    return writer.finish()
