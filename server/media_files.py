"""Decoding of uploaded images, speech and pose video into the plain files that workers get. Runs in the
sandbox only.

Nothing a client sent is ever stored: pixels and samples are decoded here and written anew as PNG (RGB), WAV
(mono) or
lossless H.264. Sizes are read from the header before anything is decoded.
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass
from fractions import Fraction
from typing import BinaryIO, Final

import av
import av.container
import av.error
import av.video.stream
import numpy as np
import soundfile
import soxr
from PIL import Image, ImageOps, UnidentifiedImageError

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


class RejectedFileError(Exception):
    """The file is not acceptable; `code` is one of server.errors."""

    def __init__(self, code: str, detail: str, limit: float | int | str | None = None) -> None:
        super().__init__(detail)
        self.code, self.detail, self.limit = code, detail, limit


@dataclass(frozen=True)
class Limits:
    """What a file may be. Pixels are width × height, seconds are of decoded sound."""

    max_pixels: int
    min_side: int
    min_seconds: float
    max_seconds: float
    max_frame_pixels: int


# --- what a file is, by its first bytes ---------------------------------------------------------------------

IMAGE_TYPES: Final = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}
AUDIO_TYPES: Final = {
    "WAV": "audio/wav",
    "FLAC": "audio/flac",
    "OGG": "audio/ogg",
    "MP3": "audio/mpeg",
    "M4A": "audio/mp4",
}
VIDEO_TYPES: Final = {"MP4": "video/mp4", "WEBM": "video/webm"}


def sniff(head: bytes) -> str | None:
    """The format of a file by its first 16 bytes: a key of the tables above ("M4A" for any MP4), or None."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        return "WAV"
    if head.startswith(b"fLaC"):
        return "FLAC"
    if head.startswith(b"OggS"):
        return "OGG"
    if head[4:8] == b"ftyp":
        return "M4A"
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return "WEBM"
    if head.startswith(b"ID3") or (
        len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0 and head[1] & 0x06
    ):
        return "MP3"
    return None


def _truncated() -> RejectedFileError:
    return RejectedFileError("truncated_file", "The file ends before its content does.")


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
        raise _truncated()


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


def decode_image(source: BinaryIO, target: BinaryIO, limits: Limits) -> dict[str, object]:
    """One upright RGB PNG out of a PNG, JPEG or WebP. Raises RejectedFileError."""
    kind = sniff(source.read(16))
    if kind not in IMAGE_TYPES:
        raise RejectedFileError(
            "unsupported_media_type",
            "Expected a PNG, JPEG or WebP image.",
            "image/png, image/jpeg, image/webp",
        )
    with mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) as data:
        _check_image_end(data, kind)
    source.seek(0)
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
    return {"format": IMAGE_TYPES[kind], "width": rgb.width, "height": rgb.height}


# --- speech -------------------------------------------------------------------------------------------------


class _WavWriter:
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


def _checked_layout(channels: int, rate: int) -> None:
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
                raise _truncated()
            return
        position += 8 + size + size % 2
    raise _truncated()


def _check_ogg_end(data: mmap.mmap) -> None:
    """The last page of an Ogg stream is whole and marked as the last."""
    page = data.rfind(b"OggS")
    if len(data) < page + 27 or not data[page + 5] & 4:
        raise _truncated()
    segments = data[page + 26]
    if len(data) < page + 27 + segments or len(data) < page + 27 + segments + sum(
        data[page + 27 : page + 27 + segments]
    ):
        raise _truncated()


def _check_mp4_end(data: mmap.mmap) -> None:
    """Every top-level box of an MP4 is whole, and the index (moov) is there."""
    position, seen = 0, set[bytes]()
    while position + 8 <= len(data):
        size, name = struct.unpack(">I4s", data[position : position + 8])
        if size == 1 and position + 16 <= len(data):
            size = struct.unpack(">Q", data[position + 8 : position + 16])[0]
        elif size == 0:
            size = len(data) - position
        if size < 8:
            raise RejectedFileError("undecodable_file", "The MP4 container is damaged.")
        if position + size > len(data):
            raise _truncated()
        seen.add(name)
        position += size
    if b"moov" not in seen:
        raise _truncated()


_END_CHECKS: Final = {"WAV": _check_wav_end, "OGG": _check_ogg_end, "M4A": _check_mp4_end}
_SOUNDFILE_FORMATS: Final = {
    "WAV": ("WAV", "WAVEX"),
    "FLAC": ("FLAC",),
    "OGG": ("OGG",),
    "MP3": ("MP3", "MPEG"),
}
_SIXTEEN_BITS: Final = ("PCM_16", "PCM_S8", "PCM_U8", "ULAW", "ALAW")


def _decode_with_libsndfile(
    source: BinaryIO, target: BinaryIO, kind: str, limits: Limits
) -> dict[str, object]:
    os.lseek(source.fileno(), 0, os.SEEK_SET)
    with soundfile.SoundFile(source.fileno(), closefd=False) as sound:
        if sound.format not in _SOUNDFILE_FORMATS[kind]:
            raise RejectedFileError("undecodable_file", f"The {kind} file contains something else.")
        _checked_layout(sound.channels, sound.samplerate)
        declared = sound.frames
        if kind == "FLAC" and declared > limits.max_seconds * sound.samplerate:
            limit = limits.max_seconds
            raise RejectedFileError("audio_too_long", f"The speech is longer than {limit:g} seconds.", limit)
        exact = sound.channels == 1 and sound.subtype in _SIXTEEN_BITS
        writer = _WavWriter(target, sound.samplerate, exact, limits)
        while True:
            block = sound.read(
                BLOCK_SAMPLES, dtype="int16" if exact else "float32", always_2d=True
            )  # (N, channels)
            if len(block) == 0:
                break
            writer.write(block[:, 0] if sound.channels == 1 else block.mean(axis=1, dtype=np.float32))
    if writer.source_samples < declared - 2 * 1152:  # two MP3 frames: their count is an estimate
        raise _truncated()
    return writer.finish()


_AV_OPTIONS: Final = {"protocol_whitelist": "", "enable_drefs": "0", "use_absolute_path": "0"}


def _open_container(source: BinaryIO, container_format: str, codecs: str) -> av.container.InputContainer:
    """Open with one demuxer, no protocols and a fixed list of codecs: whatever the bytes say, nothing else is
    tried.
    """
    return av.open(
        source,
        mode="r",
        format=container_format,
        container_options={
            **_AV_OPTIONS,
            "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm",
            "codec_whitelist": codecs,
        },
    )


def _decode_m4a(source: BinaryIO, target: BinaryIO, limits: Limits) -> dict[str, object]:
    with _open_container(source, "mov", "aac,alac,h264,hevc,mjpeg,png") as container:
        if not container.streams.audio:
            raise RejectedFileError("undecodable_file", "The MP4 file has no sound.")
        stream = container.streams.audio[0]
        context = stream.codec_context
        if context.name not in ("aac", "alac"):
            raise RejectedFileError(
                "unsupported_media_type", "The sound in the MP4 file is neither AAC nor ALAC."
            )
        _checked_layout(context.channels, context.sample_rate)
        channels, rate = context.channels, context.sample_rate
        declared = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
        writer = _WavWriter(target, rate, False, limits)
        resampler = av.AudioResampler(format="fltp")
        for frame in container.decode(stream):
            for plain in resampler.resample(frame):
                block = plain.to_ndarray()  # (channels, N)
                if len(block) != channels or plain.sample_rate != rate:
                    raise RejectedFileError(
                        "audio_unsupported_layout", "The speech changes its layout on the way."
                    )
                writer.write(block.mean(axis=0, dtype=np.float32))
    if writer.source_samples / rate < declared - 0.25:
        raise _truncated()
    return writer.finish()


def decode_audio(source: BinaryIO, target: BinaryIO, limits: Limits) -> dict[str, object]:
    """One mono WAV at the speech's own rate (16-bit if that loses nothing, else float). Raises
    RejectedFileError.
    """
    kind = sniff(source.read(16))
    if kind not in AUDIO_TYPES:
        raise RejectedFileError(
            "unsupported_media_type",
            "Expected WAV, MP3, FLAC, OGG or M4A speech.",
            ", ".join(AUDIO_TYPES.values()),
        )
    if kind in _END_CHECKS:
        with mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _END_CHECKS[kind](data)
    source.seek(0)
    try:
        if kind == "M4A":
            facts = _decode_m4a(source, target, limits)
        else:
            facts = _decode_with_libsndfile(source, target, kind, limits)
    except (soundfile.LibsndfileError, av.error.FFmpegError) as error:
        raise RejectedFileError("undecodable_file", f"The {kind} speech is damaged.") from error
    return {"format": AUDIO_TYPES[kind], **facts}


# --- pose video ---------------------------------------------------------------------------------------------

_VIDEO_CODECS: Final = ("h264", "hevc", "vp8", "vp9", "av1", "libdav1d", "libvpx", "libvpx-vp9", "mpeg4")
_HIGHEST_FRAME_RATE: Final = 120


def decode_video(source: BinaryIO, target: BinaryIO, limits: Limits) -> dict[str, object]:
    """The frames and their times as lossless H.264 (yuv420p, even sides) in MP4. Raises RejectedFileError."""
    kind = sniff(source.read(16))
    if kind not in ("M4A", "WEBM"):
        raise RejectedFileError(
            "unsupported_media_type", "Expected an MP4 or WebM video.", ", ".join(VIDEO_TYPES.values())
        )
    if kind == "M4A":
        with mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _check_mp4_end(data)
    source.seek(0)
    try:
        return _recode_video(source, target, "mov" if kind == "M4A" else "matroska", limits)
    except av.error.FFmpegError as error:
        raise RejectedFileError("undecodable_file", "The video is damaged.") from error


def _recode_video(
    source: BinaryIO, target: BinaryIO, container_format: str, limits: Limits
) -> dict[str, object]:
    with _open_container(
        source, container_format, ",".join((*_VIDEO_CODECS, "aac", "opus", "vorbis"))
    ) as container:
        if not container.streams.video:
            raise RejectedFileError("undecodable_file", "The file has no video.")
        stream = container.streams.video[0]
        context = stream.codec_context
        if context.name not in _VIDEO_CODECS:
            raise RejectedFileError(
                "unsupported_media_type",
                "The video is coded in an unsupported way.",
                ", ".join(_VIDEO_CODECS[:5]),
            )
        if context.width * context.height > limits.max_frame_pixels:
            raise RejectedFileError(
                "video_too_large",
                f"The video has {context.width} × {context.height} pixels.",
                limits.max_frame_pixels,
            )
        width, height = context.width // 2 * 2, context.height // 2 * 2
        if min(width, height) < limits.min_side:
            raise RejectedFileError(
                "image_too_small", f"The video has {width} × {height} pixels.", limits.min_side
            )
        time_base = stream.time_base or Fraction(1, 90_000)
        frames, first, last = 0, 0, -1
        with av.open(target, mode="w", format="mp4") as output:
            encoder: av.video.stream.VideoStream = output.add_stream(
                "libx264",
                rate=stream.average_rate or 25,
                options={"qp": "0", "preset": "ultrafast", "threads": "1"},
            )
            encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
            encoder.codec_context.time_base = time_base
            for frame in container.decode(stream):
                if frame.width * frame.height > limits.max_frame_pixels:
                    raise RejectedFileError(
                        "video_too_large", "The video grows on the way.", limits.max_frame_pixels
                    )
                pts = frame.pts if frame.pts is not None else last + 1
                first = pts if frames == 0 else first
                if pts <= last and frames:
                    continue  # two frames at one moment: the encoder takes only rising times
                last, frames = pts, frames + 1
                seconds = float((pts - first) * time_base)
                if seconds > limits.max_seconds or frames > limits.max_seconds * _HIGHEST_FRAME_RATE:
                    limit = limits.max_seconds
                    raise RejectedFileError(
                        "video_too_long", f"The video is longer than {limit:g} seconds.", limit
                    )
                plain = frame.reformat(width=width, height=height, format="yuv420p")
                plain.pts, plain.time_base = pts - first, time_base
                output.mux(encoder.encode(plain))
            output.mux(encoder.encode(None))
    if frames == 0:
        raise RejectedFileError("undecodable_file", "The video has no frames.")
    return {"format": VIDEO_TYPES["MP4" if container_format == "mov" else "WEBM"], "width": width,
            "height": height, "frames": frames, "seconds": float((last - first) * time_base)}  # fmt: skip


DECODERS: Final = {"image": decode_image, "audio": decode_audio, "video": decode_video}
