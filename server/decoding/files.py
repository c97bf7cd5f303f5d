"""Decoding of uploaded images and speech into the plain files that workers get. Runs in the sandbox only.

Nothing a client sent is ever stored: pixels and samples are decoded here and written anew as PNG (RGB) or WAV
(mono). Sizes are read from the header before anything is decoded. A decoder gets the source at its start, and
returns what it found out, by the names of `server.decoding.sandbox.DecodedFile`.
"""

from __future__ import annotations

import mmap
import os
import struct
from typing import BinaryIO, Final

import numpy as np
import PIL.WebPImagePlugin  # noqa: F401  Pillow would look for it, and so import all its plugins
import soundfile
import soxr
from PIL import Image, ImageOps, UnidentifiedImageError

from server.decoding.formats import Limits, RejectedFileError, truncated

BLOCK_SAMPLES: Final = 65_536
HIGHEST_RATE: Final = 48_000
"""Speech above this rate is resampled to it: AAC would drop the rest, and a tiny file could become a huge
one.
"""
LOWEST_RATE: Final = 4_000
LOUDEST_SAMPLE: Final = 32.0
"""Floating-point samples beyond this (30 dB over full scale) are not speech but garbage."""

# Pillow checks a limit of its own and only warns; ours is checked before decoding.
Image.MAX_IMAGE_PIXELS = None


# --- images -------------------------------------------------------------------------------------------------


def _check_image_end(data: mmap.mmap, kind: str) -> None:
    """Decoders forgive a missing end; we do not, because what else is missing cannot be known."""
    if kind == "PNG":
        complete = data.rfind(b"IEND\xaeB`\x82") > 0
    elif kind == "JPEG":
        complete = data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda")
    else:
        complete = len(data) >= struct.unpack("<I", data[4:8])[0] + 8
    if not complete:
        raise truncated()


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I;16", "I")):
        # 16-bit grey: Pillow's own conversion clips instead of scaling.
        wide = np.asarray(image).astype(np.uint32)
        return Image.fromarray((wide >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def decode_image(source: BinaryIO, target: BinaryIO, kind: str, limits: Limits) -> dict[str, object]:
    """One upright RGB PNG out of a PNG, JPEG or WebP. Raises RejectedFileError."""
    with mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) as data:
        _check_image_end(data, kind)
    try:
        image: Image.Image = Image.open(source, formats=[kind])
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise RejectedFileError("undecodable_file", f"The {kind} image cannot be read.") from error
    width, height = image.size
    if width * height > limits.max_pixels:
        raise RejectedFileError(
            "image_too_large", f"The image has {width} × {height} pixels.", limits.max_pixels
        )
    if min(width, height) < limits.min_side:
        raise RejectedFileError(
            "image_too_small", f"The image has {width} × {height} pixels.", limits.min_side
        )
    try:
        image.load()
        upright = ImageOps.exif_transpose(image)
    except OSError as error:
        code = "truncated_file" if "truncated" in str(error) else "undecodable_file"
        raise RejectedFileError(code, f"The {kind} image is damaged.") from error
    rgb = _on_white(upright)
    rgb.info = {}  # colour profiles and texts would be copied into the PNG
    rgb.save(target, "PNG", compress_level=1)
    return {"width": rgb.width, "height": rgb.height}


# --- speech -------------------------------------------------------------------------------------------------


class WavWriter:
    """Streams mono samples into a canonical WAV: a 44 (PCM) or 58 byte (float) header and one data chunk."""

    def __init__(self, target: BinaryIO, rate: int, as_int16: bool, limits: Limits) -> None:
        self._target, self._limits, self._as_int16 = target, limits, as_int16
        self._source_rate, self._rate = rate, min(rate, HIGHEST_RATE)
        self._resampler = (
            None if rate <= HIGHEST_RATE else soxr.ResampleStream(rate, HIGHEST_RATE, 1, "float32")
        )
        self._as_int16 = as_int16 and self._resampler is None
        self.source_samples, self.samples = 0, 0
        self._write_header()

    def _write_header(self) -> None:
        width = 2 if self._as_int16 else 4
        kind, extra = (1, b"") if self._as_int16 else (3, struct.pack("<H", 0))
        size = self.samples * width
        form = struct.pack("<HHIIHH", kind, 1, self._rate, self._rate * width, width, width * 8) + extra
        fact = b"" if self._as_int16 else struct.pack("<4sII", b"fact", 4, self.samples)
        chunks = struct.pack("<4sI", b"fmt ", len(form)) + form + fact + struct.pack("<4sI", b"data", size)
        self._target.seek(0)
        self._target.write(struct.pack("<4sI4s", b"RIFF", 4 + len(chunks) + size, b"WAVE") + chunks)

    def _emit(self, mono: np.ndarray) -> None:
        self.samples += len(mono)
        self._target.write(mono.astype("<i2" if self._as_int16 else "<f4", copy=False).tobytes())

    def write(self, mono: np.ndarray) -> None:
        """Append samples (N,): int16, or float32 around ±1. Raises RejectedFileError past the limit of
        seconds.
        """
        self.source_samples += len(mono)
        if self.source_samples > self._limits.max_seconds * self._source_rate:
            limit = self._limits.max_seconds
            raise RejectedFileError("audio_too_long", f"The speech is longer than {limit:g} seconds.", limit)
        if mono.dtype != np.int16 and not (np.abs(mono) <= LOUDEST_SAMPLE).all():
            raise RejectedFileError(
                "audio_invalid_samples", "The speech has samples that are not numbers, or far too loud."
            )
        if self._resampler is not None:
            mono = self._resampler.resample_chunk(mono.astype(np.float32))
        self._emit(mono)

    def finish(self) -> dict[str, object]:
        """Complete the header; what is known about the speech."""
        if self._resampler is not None:
            self._emit(self._resampler.resample_chunk(np.zeros(0, np.float32), last=True))
        seconds = self.samples / self._rate
        if seconds < self._limits.min_seconds:
            limit = self._limits.min_seconds
            raise RejectedFileError("audio_too_short", f"The speech is {seconds:.2f} seconds long.", limit)
        self._write_header()
        return {"rate": self._rate, "samples": self.samples, "seconds": seconds}


def check_layout(channels: int, rate: int) -> None:
    if channels not in (1, 2):
        raise RejectedFileError(
            "audio_unsupported_layout", f"The speech has {channels} channels.", "mono or stereo"
        )
    if not LOWEST_RATE <= rate <= 384_000:
        raise RejectedFileError(
            "audio_unsupported_layout", f"The sample rate is {rate} Hz.", f"{LOWEST_RATE} to 384000 Hz"
        )


def _check_wav_end(data: mmap.mmap) -> None:
    """A WAV whose data chunk claims more than the file holds was cut. (Streaming writers leave the size open:
    all ones, or 0.)
    """
    position = 12
    while position + 8 <= len(data):
        name, size = struct.unpack("<4sI", data[position : position + 8])
        if name == b"data":
            if size not in (0, 0xFFFFFFFF, 0x7FFFFFFF) and position + 8 + size > len(data):
                raise truncated()
            return
        position += 8 + size + size % 2
    raise truncated()


def _check_ogg_end(data: mmap.mmap) -> None:
    """The last page of an Ogg stream is whole and marked as the last."""
    page = data.rfind(b"OggS")
    if len(data) < page + 27 or not data[page + 5] & 4:
        raise truncated()
    segments = data[page + 26]
    if len(data) < page + 27 + segments or len(data) < page + 27 + segments + sum(
        data[page + 27 : page + 27 + segments]
    ):
        raise truncated()


_END_CHECKS: Final = {"WAV": _check_wav_end, "OGG": _check_ogg_end}
_SOUNDFILE_FORMATS: Final = {
    "WAV": ("WAV", "WAVEX"),
    "FLAC": ("FLAC",),
    "OGG": ("OGG",),
    "MP3": ("MP3", "MPEG"),
}
_SIXTEEN_BITS: Final = ("PCM_16", "PCM_S8", "PCM_U8", "ULAW", "ALAW")


def _recode(source: BinaryIO, target: BinaryIO, kind: str, limits: Limits) -> dict[str, object]:
    os.lseek(source.fileno(), 0, os.SEEK_SET)
    with soundfile.SoundFile(source.fileno(), closefd=False) as sound:
        if sound.format not in _SOUNDFILE_FORMATS[kind]:
            raise RejectedFileError("undecodable_file", f"The {kind} file contains something else.")
        check_layout(sound.channels, sound.samplerate)
        declared = sound.frames
        if kind == "FLAC" and declared > limits.max_seconds * sound.samplerate:
            limit = limits.max_seconds
            raise RejectedFileError("audio_too_long", f"The speech is longer than {limit:g} seconds.", limit)
        exact = sound.channels == 1 and sound.subtype in _SIXTEEN_BITS
        writer = WavWriter(target, sound.samplerate, exact, limits)
        while True:
            block = sound.read(
                BLOCK_SAMPLES, dtype="int16" if exact else "float32", always_2d=True
            )  # (N, channels)
            if len(block) == 0:
                break
            writer.write(block[:, 0] if sound.channels == 1 else block.mean(axis=1, dtype=np.float32))
    if writer.source_samples < declared - 2 * 1152:  # two MP3 frames: their count is an estimate
        raise truncated()
    return writer.finish()


def decode_sound(source: BinaryIO, target: BinaryIO, kind: str, limits: Limits) -> dict[str, object]:
    """One mono WAV at the speech's own rate (16-bit if that loses nothing, else float) out of a file that
    libsndfile reads. Raises RejectedFileError.
    """
    if kind in _END_CHECKS:
        with mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _END_CHECKS[kind](data)
    try:
        return _recode(source, target, kind, limits)
    except soundfile.LibsndfileError as error:
        raise RejectedFileError("undecodable_file", f"The {kind} speech is damaged.") from error
