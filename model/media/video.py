"""Frames and speech → MP4. Each clip is encoded once; joining copies its packets."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import av
import numpy as np
import soxr
from av.audio.stream import AudioStream
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream

from contract.video import CLIP_FRAMES, FPS
from model.media.audio import Speech, load_speech
from model.media.errors import MediaError

ENCODER_THREADS = 1
"""One, because equal frames must give equal bytes. With more threads, frame types can depend on which thread
is late. On two cores a clip of 80 frames at 720x1280 takes 3.8 s instead of 3.1 s.
"""

AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
AAC_FRAME = 1024
BT709 = 1


class ClipWriter:
    """H.264 file of one clip, written frame by frame: yuv420p, 25 fps, closed GOPs, BT.709, no sound.

    Use it as a context manager. After an exception inside it the file is incomplete and must be dropped.
    """

    def __init__(self, path: str | Path, width: int, height: int, crf: int = 17) -> None:
        self._container = av.open(str(path), mode="w", format="mp4", options={"fflags": "+bitexact"})
        options = {
            "crf": str(crf),
            "preset": "fast",
            "profile": "high",
            # mbtree is off: its assembly reads beyond a row, so equal frames would give unequal bytes.
            "x264-params": f"open-gop=0:keyint={CLIP_FRAMES}:mbtree=0:"
            f"threads={ENCODER_THREADS}:sliced-threads=0",
        }
        stream = self._container.add_stream("libx264", rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context = stream.codec_context
        context.time_base = Fraction(1, FPS)
        context.thread_count, context.thread_type = ENCODER_THREADS, "FRAME"
        context.color_range = ColorRange.MPEG
        context.colorspace = context.color_primaries = context.color_trc = BT709
        self._stream: VideoStream = stream
        self._written = 0

    def write(self, frames: np.ndarray) -> None:
        """Append frames, (T, H, W, 3) uint8 RGB."""
        for pixels in frames:
            rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame = rgb.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, interpolation="BICUBIC")
            frame.colorspace, frame.color_range = Colorspace.ITU709, ColorRange.MPEG
            frame.pts, frame.time_base = self._written, Fraction(1, FPS)
            self._container.mux(self._stream.encode(frame))
            self._written += 1

    def close(self) -> None:
        """Flush the encoder and write the file's index."""
        self._container.mux(self._stream.encode(None))
        self._container.close()

    def __enter__(self) -> ClipWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._container.close()


def encode_clip(frames: np.ndarray, path: str | Path) -> None:
    """Write frames (T, H, W, 3) uint8 RGB, even H and W, as one H.264 file. Equal frames give equal bytes."""
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or len(frames) == 0:
        raise ValueError(f"frames must be (T > 0, H, W, 3) uint8, not {frames.shape} {frames.dtype}")
    with ClipWriter(path, width=frames.shape[2], height=frames.shape[1]) as writer:
        writer.write(frames)


def join_clips(clip_paths: Sequence[str | Path], audio: str | Path | Speech, path: str | Path) -> None:
    """Join clips of `encode_clip` and the speech into one MP4 that can be played while it downloads.

    Video packets are copied. The speech keeps its rate, or gets the next rate that AAC has, up to 48 kHz, and
    keeps up to two channels. It is cut where it outlasts the video by more than one frame, because then the
    caller asked for fewer clips than the speech needs.

    Raises:
        MediaError: a clip is not H.264, or has another size or other encoder settings than the first.
    """
    if not clip_paths:
        raise ValueError("there are no clips to join")
    speech = audio if isinstance(audio, Speech) else load_speech(audio)
    num_frames = sum(packet_count(clip) for clip in clip_paths)
    with (
        av.open(str(clip_paths[0])) as first,
        av.open(
            str(path), mode="w", format="mp4", options={"movflags": "+faststart", "fflags": "+bitexact"}
        ) as output,
    ):
        template = first.streams.video[0]
        video = output.add_stream_from_template(template)
        video.time_base = template.time_base
        samples, rate = for_aac(speech, num_frames)
        sound = output.add_stream("aac", rate=rate, layout=layout_of(samples))
        sound.bit_rate = bit_rate_of(samples, rate)
        pictures = _copied(clip_paths, video, template.codec_context.extradata)
        for _, _, packet in heapq.merge(pictures, _encoded(samples, rate, sound), key=lambda item: item[:2]):
            output.mux(packet)


Timed: TypeAlias = "tuple[Fraction, int, av.Packet[Any]]"
"""(decoding time in seconds, order of the streams for ties, packet)."""


def packet_count(clip: str | Path) -> int:
    """Coded pictures in a clip. Raises MediaError if it is not H.264."""
    try:
        with av.open(str(clip)) as container:
            if not container.streams.video or container.streams.video[0].codec_context.name != "h264":
                raise MediaError(f"{Path(clip).name} is not an H.264 clip")
            return int(container.streams.video[0].frames)
    except av.FFmpegError as error:
        raise MediaError(f"{Path(clip).name} is not a readable clip: {error}") from error


def _copied(clips: Sequence[str | Path], output: VideoStream, extradata: bytes | None) -> Iterator[Timed]:
    offset = 0
    for clip in clips:
        with av.open(str(clip)) as container:
            stream = container.streams.video[0]
            if stream.codec_context.extradata != extradata:
                raise MediaError(
                    f"{Path(clip).name} was encoded with another size or other settings than the first"
                )
            base = Fraction(stream.time_base or 0)
            step = int(Fraction(1, FPS) / base)
            for packet in container.demux(stream):
                if packet.dts is None or packet.pts is None:  # the demuxer's end mark
                    continue
                packet.pts += offset
                packet.dts += offset
                time = packet.dts * base
                packet.stream = output
                yield time, 0, packet
            offset += int(stream.frames) * step


def _encoded(samples: np.ndarray, rate: int, output: AudioStream) -> Iterator[Timed]:
    layout = layout_of(samples)
    for start in range(0, samples.shape[1], AAC_FRAME):
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(samples[:, start : start + AAC_FRAME]), format="fltp", layout=layout
        )
        frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
        yield from _timed(output.encode(frame), rate)
    yield from _timed(output.encode(None), rate)


def _timed(packets: Sequence[av.Packet[Any]], rate: int) -> Iterator[Timed]:
    for packet in packets:
        yield (packet.dts or 0) * Fraction(packet.time_base or Fraction(1, rate)), 1, packet


def layout_of(samples: np.ndarray) -> str:
    """FFmpeg's word for the channels of samples (1 or 2, N)."""
    return "stereo" if len(samples) == 2 else "mono"


def bit_rate_of(samples: np.ndarray, rate: int) -> int:
    """Bits per second of AAC. 6 bits per sample is the most that it can hold, and lower rates get
    proportionally less.
    """
    return min(96_000, 4 * rate) * len(samples)


def for_aac(speech: Speech, num_frames: int) -> tuple[np.ndarray, int]:
    """Samples (1 or 2, N) at a rate that AAC has, cut where they outlast the video by more than a frame."""
    samples = speech.samples
    if len(samples) > 2:
        samples = samples.mean(axis=0, keepdims=True, dtype=np.float32)
    longest = (num_frames + 1) * speech.sample_rate // FPS
    if samples.shape[1] > longest:
        samples = samples[:, : num_frames * speech.sample_rate // FPS]
    rate = next((r for r in AAC_RATES if r >= speech.sample_rate), AAC_RATES[-1])
    if rate != speech.sample_rate:
        samples = soxr.resample(samples.T, speech.sample_rate, rate, quality="HQ").T
    return samples.astype(np.float32, copy=False), rate
