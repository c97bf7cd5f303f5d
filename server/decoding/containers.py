"""Decoding of MP4 and WebM, as speech or as pose video, with FFmpeg. Runs in the sandbox only.

Apart from server.decoding.files because FFmpeg makes a process twice as expensive to fork, and few requests
need it.
"""

from __future__ import annotations

import io
import mmap
import struct
from fractions import Fraction
from typing import BinaryIO, Final

import av
import av.container
import av.error
import av.video.stream
import numpy as np

from server.decoding.files import WavWriter, check_layout
from server.decoding.formats import Kind, Limits, RejectedFileError, truncated

_VIDEO_CODECS: Final = ("h264", "hevc", "vp8", "vp9", "av1", "libdav1d", "libvpx", "libvpx-vp9", "mpeg4")
_HIGHEST_FRAME_RATE: Final = 120
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
            raise truncated()
        seen.add(name)
        position += size
    if b"moov" not in seen:
        raise truncated()


def _sound_of_mp4(source: BinaryIO, target: BinaryIO, limits: Limits) -> dict[str, object]:
    with _open_container(source, "mov", "aac,alac,h264,hevc,mjpeg,png") as container:
        if not container.streams.audio:
            raise RejectedFileError("undecodable_file", "The MP4 file has no sound.")
        stream = container.streams.audio[0]
        context = stream.codec_context
        if context.name not in ("aac", "alac"):
            raise RejectedFileError(
                "unsupported_media_type", "The sound in the MP4 file is neither AAC nor ALAC."
            )
        check_layout(context.channels, context.sample_rate)
        channels, rate = context.channels, context.sample_rate
        declared = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
        writer = WavWriter(target, rate, False, limits)
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
        raise truncated()
    return writer.finish()


def decode_sound(source: BinaryIO, target: BinaryIO, kind: str, limits: Limits) -> dict[str, object]:
    """One mono float WAV at the speech's own rate out of an MP4. Raises RejectedFileError."""
    with mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) as data:
        _check_mp4_end(data)
    try:
        return _sound_of_mp4(source, target, limits)
    except av.error.FFmpegError as error:
        raise RejectedFileError("undecodable_file", f"The {kind} speech is damaged.") from error


def decode_video(source: BinaryIO, target: BinaryIO, kind: str, limits: Limits) -> dict[str, object]:
    """The frames and their times as lossless H.264 (yuv420p, even sides) in MP4. Raises RejectedFileError."""
    if kind == "M4A":
        with mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _check_mp4_end(data)
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
    seconds = float((last - first) * time_base)
    return {"width": width, "height": height, "frames": frames, "seconds": seconds}


def samples() -> list[tuple[Kind, bytes]]:
    """Speech and a video in MP4, to load the codecs with."""
    speech = io.BytesIO()
    with av.open(speech, mode="w", format="mp4") as container:
        aac = container.add_stream("aac", rate=16_000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 16_000
        container.mux(aac.encode(silence))
        container.mux(aac.encode(None))
    video = io.BytesIO()
    with av.open(video, mode="w", format="mp4") as container:
        h264 = container.add_stream("libx264", rate=25)
        h264.width, h264.height, h264.pix_fmt = 32, 32, "yuv420p"
        black = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        container.mux(h264.encode(black))
        container.mux(h264.encode(None))
    return [("audio", speech.getvalue()), ("video", video.getvalue())]
