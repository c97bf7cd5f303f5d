"""The time grid of a video: frames per second, frames of a clip, frames that belong to a recording."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

FPS: Final = 25

SAMPLE_RATE: Final = 16_000
"""Samples per second of the speech that the model hears, mono."""

CLIP_FRAMES: Final = 80
"""Frames that the model generates at once (paper, and official code)."""

CLIP_LATENT_FRAMES: Final = 20
"""Latent frames of a clip: the VAE packs four frames into one."""

MOTION_FRAMES: Final = 73
"""The last frames of a clip, from which the next clip continues."""

MOTION_LATENT_FRAMES: Final = 19


POSTER_HEIGHT: Final = 360
"""Pixels of the still pictures that stand for a job or a clip in a list."""

MAX_DROPPED_FRAMES: Final = 2
"""A last clip with no more frames than this is dropped: rendering it takes as long as a whole one."""


def frames_of_speech(samples: int, rate: int) -> int:
    """Video frames that last as long as the speech, at least one. The number is rounded, so that sound and
    picture end within half a frame of each other.
    """
    return max(1, (2 * samples * FPS + rate) // (2 * rate))


def clips_of_frames(num_frames: int) -> int:
    """Clips that hold so many frames. The last one may be cut short."""
    return -(-num_frames // CLIP_FRAMES)


@dataclass(frozen=True)
class SpeechLength:
    """How long a recording is, at its own sample rate."""

    samples: int
    """Per channel."""
    rate: int
    """Samples per second."""


def video_length(
    speech: SpeechLength, most_clips: int | None = None, max_dropped_frames: int = MAX_DROPPED_FRAMES
) -> tuple[int, int]:
    """Clips and frames of a speech's video: all of it, or its beginning of at most `most_clips` clips.

    A last clip of no more than `max_dropped_frames` frames is dropped.
    """
    num_frames = frames_of_speech(speech.samples, speech.rate)
    in_whole_clips = num_frames // CLIP_FRAMES * CLIP_FRAMES
    if in_whole_clips and num_frames - in_whole_clips <= max_dropped_frames:
        num_frames = in_whole_clips
    if most_clips is not None:
        num_frames = min(num_frames, most_clips * CLIP_FRAMES)
    return clips_of_frames(num_frames), num_frames
