"""Clips with their slices of the speech, as fragments that a player puts one behind the other."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import cached_property
from pathlib import Path

import av
import numpy as np

from contract.video import CLIP_FRAMES, FPS
from model.media.audio import load_speech
from model.media.errors import MediaError
from model.media.fragments import (
    SOUND_TRACK,
    VIDEO_TRACK,
    Run,
    Sample,
    SoundHeader,
    VideoHeader,
    fragment,
    header,
)
from model.media.video import AAC_FRAME, bit_rate_of, for_aac, layout_of, packet_count

TICK = 512
"""A picture's duration in the timescale of the video track."""
VIDEO_TIMESCALE = TICK * FPS
REORDERED = 2
"""Pictures that the encoder puts ahead of their turn, at most: it uses pyramids of B-frames."""


class _Sound:
    """The speech of a video, coded once from its start to its end, so that no slice begins anew."""

    def __init__(self, samples: np.ndarray, rate: int) -> None:
        self.rate, self.channels = rate, len(samples)
        context = av.CodecContext.create("aac", "w")
        assert isinstance(context, av.AudioCodecContext)
        context.sample_rate, context.layout, context.format = rate, layout_of(samples), "fltp"
        context.bit_rate = bit_rate_of(samples, rate)
        context.flags |= av.codec.context.Flags.global_header
        context.open()
        self.frames: list[bytes] = []
        starts = []
        for start in range(0, samples.shape[1], AAC_FRAME):
            block = np.ascontiguousarray(samples[:, start : start + AAC_FRAME])
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=layout_of(samples))
            frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
            packets = context.encode(frame)
            self.frames += [bytes(packet) for packet in packets]
            starts += [packet.pts for packet in packets]
        packets = context.encode(None)
        self.frames += [bytes(packet) for packet in packets]
        starts += [packet.pts for packet in packets]
        self.config = context.extradata or b""
        self.priming = -(starts[0] or 0)

    def between(self, first: Fraction, last: Fraction) -> range:
        """The numbers of the frames that begin to sound within these seconds. What comes before the first
        second belongs to it.
        """
        bounds = [self._first_at(first) if first > 0 else 0, self._first_at(last)]
        return range(*(min(bound, len(self.frames)) for bound in bounds))

    def _first_at(self, seconds: Fraction) -> int:
        return -int(-(seconds * self.rate + self.priming) // AAC_FRAME)


class ClipStream:
    """Makes the fragments of a video of `num_frames` frames with the speech in the file `audio`."""

    def __init__(self, audio: str | Path, num_frames: int) -> None:
        self._audio, self._num_frames = audio, num_frames

    @cached_property
    def _sound(self) -> _Sound:
        return _Sound(*for_aac(load_speech(self._audio), self._num_frames))

    def write(self, index: int, video: str | Path, header_path: str | Path, path: str | Path) -> None:
        """Write clip `index`, which `encode_clip` wrote to `video`, and the header that goes before the first
        fragment. All clips of a video have the same header. Equal clips give equal bytes.

        Raises MediaError if the clip is none of ours.
        """
        about, samples = _pictures(video)
        sound, began = self._sound, index * CLIP_FRAMES
        heard = sound.between(Fraction(began, FPS), Fraction(began + len(samples), FPS))
        runs = [
            Run(VIDEO_TRACK, began * TICK, TICK, samples),
            Run(
                SOUND_TRACK,
                heard.start * AAC_FRAME,
                AAC_FRAME,
                [Sample(sound.frames[number]) for number in heard],
            ),
        ]
        Path(path).write_bytes(fragment(index + 1, runs))
        about_sound = SoundHeader(sound.rate, sound.channels, sound.config, sound.priming)
        Path(header_path).write_bytes(header(about, about_sound))


def _pictures(video: str | Path) -> tuple[VideoHeader, Sequence[Sample]]:
    """The coded pictures of a clip, in the order of decoding, one tick of 1/25 s apart."""
    packet_count(video)
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        ticks = Fraction(stream.time_base or 0) * FPS
        samples: list[Sample] = []
        for packet in container.demux(stream):
            if packet.pts is None:  # the demuxer's end mark
                continue
            ahead = int(packet.pts * ticks) - len(samples) + REORDERED
            if ahead < 0:
                raise MediaError(f"{Path(video).name} has pictures further out of order than we write them")
            samples.append(Sample(bytes(packet), packet.is_keyframe, ahead * TICK))
        config = stream.codec_context.extradata or b""
        return VideoHeader(stream.width, stream.height, VIDEO_TIMESCALE, config, REORDERED * TICK), samples
