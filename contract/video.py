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


def frames_of_speech(samples: int, rate: int) -> int:
    """Video frames as long as the speech. Rounded, so that sound and picture end within half a frame of each
    other; at least one.
    """
    return max(1, (2 * samples * FPS + rate) // (2 * rate))


def clips_of_frames(num_frames: int) -> int:
    """Clips that hold so many frames; the last one may be cut short."""
    return -(-num_frames // CLIP_FRAMES)


@dataclass(frozen=True)
class SpeechLength:
    """How long a recording is, at the rate that it has itself."""

    samples: int
    """Per channel."""
    rate: int
    """Samples per second."""


def video_length(speech: SpeechLength, most_clips: int | None = None) -> tuple[int, int]:
    """Clips and frames of a speech's video: all of it, or its beginning of at most `most_clips` clips."""
    num_frames = frames_of_speech(speech.samples, speech.rate)
    if most_clips is not None:
        num_frames = min(num_frames, most_clips * CLIP_FRAMES)
    return clips_of_frames(num_frames), num_frames
