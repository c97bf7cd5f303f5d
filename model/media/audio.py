"""Speech files → samples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import soundfile
import soxr

from contract.video import SAMPLE_RATE
from model.media.errors import MediaError


@dataclass(frozen=True)
class Speech:
    """Decoded speech at its own rate."""

    samples: np.ndarray
    """(channels, N) float32 in about -1..1."""
    sample_rate: int

    @property
    def seconds(self) -> float:
        return float(self.samples.shape[1] / self.sample_rate)


def load_speech(path: str | Path) -> Speech:
    """Decode WAV, FLAC, OGG and MP3 with libsndfile, M4A and other formats with FFmpeg.

    Raises:
        MediaError: the file has no audio, cannot be decoded, or holds samples that are not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(path)
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        speech = Speech(np.ascontiguousarray(samples.T), int(rate))
    except soundfile.LibsndfileError:  # not one of libsndfile's formats, or too broken for it
        speech = _decode_with_ffmpeg(path)
    if speech.samples.size == 0:
        raise MediaError("the audio file holds no sound")
    if not np.isfinite(speech.samples).all():
        raise MediaError("the audio file holds samples that are not finite numbers")
    return speech


def to_model_audio(speech: Speech) -> np.ndarray:
    """Mono (mean of the channels) at 16 kHz, (N,) float32, by soxr HQ as in the official code."""
    mono: np.ndarray = speech.samples.mean(axis=0, dtype=np.float32)
    if speech.sample_rate != SAMPLE_RATE:
        mono = soxr.resample(mono, speech.sample_rate, SAMPLE_RATE, quality="HQ")
    return mono.astype(np.float32, copy=False)


def load_audio(path: str | Path) -> np.ndarray:
    """Speech file → what the pipeline takes: (N,) float32, mono, 16 kHz."""
    return to_model_audio(load_speech(path))


def _decode_with_ffmpeg(path: Path) -> Speech:
    try:
        with av.open(str(path), mode="r") as container:
            if not container.streams.audio:
                raise MediaError("the file has no audio stream")
            stream = container.streams.audio[0]
            rate = stream.rate
            resampler = av.AudioResampler(format="fltp", layout=stream.layout, rate=rate)
            parts = [f.to_ndarray() for frame in container.decode(stream) for f in resampler.resample(frame)]
            parts += [f.to_ndarray() for f in resampler.resample(None)]
    except (av.FFmpegError, UnicodeDecodeError) as error:
        raise MediaError(f"the audio cannot be decoded: {error}") from error
    if not parts:
        raise MediaError("the audio file holds no sound")
    return Speech(np.concatenate(parts, axis=1).astype(np.float32, copy=False), int(rate))
