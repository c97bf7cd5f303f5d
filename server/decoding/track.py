"""The canonical speech: a WAV of one or two channels at no more than 48 kHz, written while it is decoded.

Whoever decodes hands over blocks as they come, with their own rate and channels: joined recordings change
both on the way.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Sequence
from typing import BinaryIO, Final

import numpy as np
import soxr

from contract.choices import WarningCode
from server.decoding.formats import Limits, RejectedFileError

BLOCK_SAMPLES: Final = 65_536
"""Samples per channel that a decoder should hand over at once."""
HIGHEST_RATE: Final = 48_000
"""Speech above this rate is resampled to it: AAC would drop the rest, and a tiny file could become a huge
one.
"""
LOWEST_RATE: Final = 4_000
MOST_CHANNELS: Final = 8
LOUDEST_SAMPLE: Final = 32.0
"""Floating-point samples beyond this (30 dB over full scale) are not speech but garbage."""

_HALF_POWER: Final = math.sqrt(0.5)
_TO_LEFT_AND_RIGHT: Final[dict[str, tuple[float, float]]] = {
    "FL": (1.0, 0.0),
    "FR": (0.0, 1.0),
    "FC": (_HALF_POWER, _HALF_POWER),
    "LFE": (0.0, 0.0),
    "BL": (_HALF_POWER, 0.0),
    "BR": (0.0, _HALF_POWER),
    "SL": (_HALF_POWER, 0.0),
    "SR": (0.0, _HALF_POWER),
    "BC": (0.5, 0.5),
    "FLC": (1.0, 0.0),
    "FRC": (0.0, 1.0),
}
"""What each loudspeaker's channel gives to a stereo downmix (ITU-R BS.775, as FFmpeg does it)."""
_USUAL_SPEAKERS: Final[dict[int, tuple[str, ...]]] = {
    3: ("FL", "FR", "LFE"),
    4: ("FL", "FR", "FC", "BC"),
    5: ("FL", "FR", "FC", "BL", "BR"),
    6: ("FL", "FR", "FC", "LFE", "BL", "BR"),
    7: ("FL", "FR", "FC", "LFE", "BC", "SL", "SR"),
    8: ("FL", "FR", "FC", "LFE", "BL", "BR", "SL", "SR"),
}
"""What so many channels stand for where a file does not say."""

_WINDOW_S: Final = 0.1
_SILENT: Final = 10 ** (-65 / 20)
_QUIET: Final = 10 ** (-45 / 20)
"""Levels (RMS of a tenth of a second, full scale = 1). Clear speech is at about -20 dB."""
_LEAST_SOUND_S: Final = 0.2
"""Shorter sounds, clicks and breaths, are not speech."""
_ANTIPHASE: Final = 4.0
"""One channel is the other upside down if their difference has so many times the power of their sum."""


def in_two_channels(block: np.ndarray, speakers: Sequence[str]) -> np.ndarray:
    """Downmix (C > 2, N) float32 to (2, N), never louder than full scale. `speakers` names the channels; it
    may be empty.
    """
    names = speakers if all(name in _TO_LEFT_AND_RIGHT for name in speakers) and speakers else ()
    matrix = np.array([_TO_LEFT_AND_RIGHT[name] for name in names or _USUAL_SPEAKERS[len(block)]])
    matrix /= max(1.0, matrix.sum(axis=0).max())
    return np.asarray(matrix.T @ block, dtype=np.float32)


def _in_16_bits(block: np.ndarray) -> np.ndarray:
    if block.dtype == np.int16:
        return block
    return np.clip(np.round(block * 32_768), -32_768, 32_767).astype(np.int16)


def _in_floats(block: np.ndarray) -> np.ndarray:
    if block.dtype == np.int16:
        return block.astype(np.float32) / np.float32(32_768)
    return block.astype(np.float32, copy=False)


class _Levels:
    """How loud the speech is, and whether its channels cancel each other."""

    def __init__(self) -> None:
        self._silent_s = self._quiet_s = 0.0
        self._sum = self._difference = 0.0
        self.seconds = 0.0

    def add(self, block: np.ndarray, rate: int) -> None:
        """Take in (C, N) float32."""
        starts = np.arange(0, block.shape[1], max(1, round(_WINDOW_S * rate)))
        lengths = np.diff(starts, append=block.shape[1])

        def mean_of(values: np.ndarray) -> np.ndarray:
            means: np.ndarray = np.add.reduceat(values, starts, axis=1, dtype=np.float64) / lengths
            return means

        # What is constant cannot be heard.
        power = (mean_of(np.square(block)) - np.square(mean_of(block))).max(axis=0)
        self.seconds += block.shape[1] / rate
        self._silent_s += float(lengths[power < _SILENT**2].sum() / rate)
        self._quiet_s += float(lengths[power < _QUIET**2].sum() / rate)
        if len(block) == 2:
            left, right = block - block.mean(axis=1, keepdims=True)
            self._sum += float(np.square(left + right).sum())
            self._difference += float(np.square(left - right).sum())

    @property
    def cancels(self) -> bool:
        return self._difference > _ANTIPHASE * self._sum

    def warnings(self) -> list[tuple[str, str]]:
        if self.seconds - self._silent_s < _LEAST_SOUND_S:
            return [(WarningCode.SPEECH_SILENT, "The speech is silent: the person will not talk.")]
        if self.seconds - self._quiet_s < _LEAST_SOUND_S:
            return [(WarningCode.SPEECH_QUIET, "The speech is far too quiet; raise its level.")]
        return []


class _Resampler:
    """Blocks at one rate to blocks at another."""

    def __init__(self, source_rate: int, rate: int, channels: int) -> None:
        self.source_rate = source_rate
        self._channels = channels
        self._stream = (
            None if source_rate == rate else soxr.ResampleStream(source_rate, rate, channels, "float32")
        )

    def push(self, block: np.ndarray) -> np.ndarray:
        """(C, N) to (C, M)."""
        return block if self._stream is None else self._run(_in_floats(block).T, last=False)

    def flush(self) -> np.ndarray:
        """What is still held back, (C, M)."""
        if self._stream is None:
            return np.zeros((self._channels, 0), np.float32)
        return self._run(np.zeros((0, self._channels), np.float32), last=True)

    def _run(self, block: np.ndarray, *, last: bool) -> np.ndarray:
        assert self._stream is not None
        samples = np.ascontiguousarray(block[:, 0] if self._channels == 1 else block)
        out: np.ndarray = self._stream.resample_chunk(samples, last=last)
        return out.reshape(-1, self._channels).T


class SpeechWriter:
    """Streams speech into a canonical WAV: 16-bit PCM if the first block is that, else float.

    A 44 (PCM) or 58 byte (float) header and one data chunk. What comes first decides on rate and channels;
    what comes later is brought to them.
    """

    def __init__(self, target: BinaryIO, limits: Limits) -> None:
        self._target, self._limits = target, limits
        self._resampler: _Resampler | None = None
        self._levels = _Levels()
        self._rate = self._channels = self.samples = 0
        self._as_int16 = False
        self._source_seconds = 0.0
        self._warnings: list[tuple[str, str]] = []

    def warn(self, code: WarningCode, message: str) -> None:
        """Have the submitter told something about the file."""
        self._warnings.append((code, message))

    def write(self, block: np.ndarray, rate: int, speakers: Sequence[str] = ()) -> None:
        """Append (C, N) int16, or float32 around ±1, at `rate` Hz.

        Raises:
            RejectedFileError: too many channels, a strange rate, samples that are no sound, past the limit of
                seconds.
        """
        if block.shape[1] == 0:
            return
        _check_layout(len(block), rate)
        self._source_seconds += block.shape[1] / rate
        if self._source_seconds > self._limits.max_seconds:
            limit = self._limits.max_seconds
            raise RejectedFileError("audio_too_long", f"The speech is longer than {limit:g} seconds.", limit)
        if block.dtype != np.int16 and not (np.abs(block) <= LOUDEST_SAMPLE).all():
            raise RejectedFileError(
                "audio_invalid_samples", "The speech has samples that are not numbers, or far too loud."
            )
        if len(block) > 2:
            block = in_two_channels(_in_floats(block), speakers)
        if self._channels == 0:
            self._begin(block, rate)
        elif len(block) != self._channels:
            mono = _in_floats(block).mean(axis=0, keepdims=True, dtype=np.float32)
            block = np.repeat(mono, self._channels, axis=0)
        if self._resampler is None or self._resampler.source_rate != rate:
            self._flush()
            self._resampler = _Resampler(rate, self._rate, self._channels)
        self._emit(self._resampler.push(block))

    def _begin(self, block: np.ndarray, rate: int) -> None:
        self._channels, self._rate = len(block), min(rate, HIGHEST_RATE)
        self._as_int16 = block.dtype == np.int16 and rate <= HIGHEST_RATE
        self._write_header()

    def _flush(self) -> None:
        if self._resampler is not None:
            self._emit(self._resampler.flush())

    def _emit(self, block: np.ndarray) -> None:
        if block.shape[1] == 0:
            return
        self._levels.add(_in_floats(block), self._rate)
        self.samples += block.shape[1]
        plain = _in_16_bits(block) if self._as_int16 else _in_floats(block)
        self._target.write(plain.T.astype(self._sample_type, order="C", copy=False).tobytes())

    @property
    def _sample_type(self) -> str:
        return "<i2" if self._as_int16 else "<f4"

    def _header(self) -> bytes:
        width = 2 if self._as_int16 else 4
        kind, extra = (1, b"") if self._as_int16 else (3, struct.pack("<H", 0))
        block, rate = self._channels * width, self._rate
        size = self.samples * block
        form = struct.pack("<HHIIHH", kind, self._channels, rate, rate * block, block, width * 8) + extra
        fact = b"" if self._as_int16 else struct.pack("<4sII", b"fact", 4, self.samples)
        chunks = struct.pack("<4sI", b"fmt ", len(form)) + form + fact + struct.pack("<4sI", b"data", size)
        return struct.pack("<4sI4s", b"RIFF", 4 + len(chunks) + size, b"WAVE") + chunks

    def _write_header(self) -> None:
        self._target.seek(0)
        self._target.write(self._header())

    def _turn_right_channel(self) -> None:
        """Undo the wrong polarity of one channel, or the two would cancel each other wherever they meet: in
        the mono that the model hears, and in every telephone.
        """
        offset, block_bytes = len(self._header()), BLOCK_SAMPLES * 2 * np.dtype(self._sample_type).itemsize
        for start in range(offset, self._target.seek(0, os.SEEK_END), block_bytes):
            self._target.seek(start)
            samples = np.frombuffer(self._target.read(block_bytes), self._sample_type).reshape(-1, 2).copy()
            right = samples[:, 1]
            # -32768 has no opposite in 16 bits.
            samples[:, 1] = -np.maximum(right, -32_767) if self._as_int16 else -right
            self._target.seek(start)
            self._target.write(samples.tobytes())

    def finish(self) -> dict[str, object]:
        """Complete the file; what is known about the speech. Raises RejectedFileError if it is too short."""
        self._flush()
        seconds = self.samples / self._rate if self._rate else 0.0
        if seconds < self._limits.min_seconds:
            limit = self._limits.min_seconds
            raise RejectedFileError("audio_too_short", f"The speech is {seconds:.2f} seconds long.", limit)
        self._write_header()
        if self._channels == 2 and self._levels.cancels:
            self._turn_right_channel()
        return {
            "rate": self._rate,
            "samples": self.samples,
            "seconds": seconds,
            "warnings": [*self._warnings, *self._levels.warnings()],
        }


def _check_layout(channels: int, rate: int) -> None:
    if not 1 <= channels <= MOST_CHANNELS:
        raise RejectedFileError(
            "audio_unsupported_layout",
            f"The speech has {channels} channels.",
            f"1 to {MOST_CHANNELS} channels",
        )
    if not LOWEST_RATE <= rate <= 384_000:
        raise RejectedFileError(
            "audio_unsupported_layout", f"The sample rate is {rate} Hz.", f"{LOWEST_RATE} to 384000 Hz"
        )
