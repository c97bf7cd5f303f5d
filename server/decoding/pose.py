"""Decoding of pose videos, MP4 and WebM, with FFmpeg. Runs in the sandbox only."""

from __future__ import annotations

import io
import mmap
from fractions import Fraction
from typing import BinaryIO, Final

import av
import av.error
import av.video.stream
import numpy as np

from server.decoding.ffmpeg import open_container
from server.decoding.formats import THREADS, Limits, RejectedFileError, Sample
from server.decoding.wholeness import check_mp4, webm_links

_VIDEO_CODECS: Final = ("h264", "hevc", "vp8", "vp9", "av1", "libdav1d", "libvpx", "libvpx-vp9", "mpeg4")
_HIGHEST_FRAME_RATE: Final = 120


def decode_video(source: BinaryIO, target: BinaryIO, kind: str, limits: Limits) -> dict[str, object]:
    """The frames and their times as lossless H.264 (yuv420p, even sides) in MP4. Raises RejectedFileError."""
    with mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if kind == "M4A":
            check_mp4(data)
        else:
            webm_links(data)
    try:
        return _recode_video(source, target, "mov" if kind == "M4A" else "matroska", limits)
    except av.error.FFmpegError as error:
        raise RejectedFileError("undecodable_file", "The video is damaged.") from error


def _recode_video(
    source: BinaryIO, target: BinaryIO, container_format: str, limits: Limits
) -> dict[str, object]:
    with open_container(source, container_format, _VIDEO_CODECS) as container:
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
        context.thread_count = THREADS
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


def sample() -> Sample:
    """H.264 in MP4."""
    buffer = io.BytesIO()
    with av.open(buffer, mode="w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        black = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        container.mux(stream.encode(black))
        container.mux(stream.encode(None))
    return "video", buffer.getvalue()
