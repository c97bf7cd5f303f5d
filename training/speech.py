"""Speech for the procedural world, by espeak-ng if it is installed, else by a small formant synthesiser."""

from __future__ import annotations

import io
import shutil
import subprocess
from typing import Literal

import numpy as np
import soundfile
import soxr

from contract.video import FPS, SAMPLE_RATE

Synthesiser = Literal["auto", "formant", "espeak-ng"]

# First three formants (Hz) of ten vowels, adult average (Peterson and Barney, 1952).
VOWELS = np.array(
    [
        [270, 2290, 3010], [390, 1990, 2550], [530, 1840, 2480], [660, 1720, 2410], [730, 1090, 2440],
        [570, 840, 2410], [440, 1020, 2240], [300, 870, 2240], [640, 1190, 2390], [490, 1350, 1690],
    ],
    dtype=np.float64,
)  # fmt: skip
BANDWIDTHS = np.array([80.0, 110.0, 160.0])
HARMONICS = 28


def speak(num_frames: int, seed: int, synthesiser: Synthesiser = "auto") -> np.ndarray:
    """Speech-like sound that covers `num_frames` frames at 25 fps: (N,) float32, mono, 16 kHz, peak 0.7.

    Deterministic for a seed and a synthesiser ("auto" takes espeak-ng if it is on PATH).
    """
    program = shutil.which("espeak-ng") if synthesiser != "formant" else None
    if program is None:
        if synthesiser == "espeak-ng":
            raise FileNotFoundError("espeak-ng is not installed")
        return _formant_speech(num_frames, seed)
    return _espeak_speech(program, num_frames, seed)


def mouth_opening(audio: np.ndarray, num_frames: int) -> np.ndarray:
    """How far the mouth opens in each frame, 0..1: the speech's loudness, smoothed over three frames.

    1 is as loud as the loud parts of this speech, because the audio encoder's input is normalised per speech
    too.
    """
    hop = SAMPLE_RATE // FPS
    padded = np.pad(audio.astype(np.float64), (0, max(0, num_frames * hop - len(audio))))[: num_frames * hop]
    loudness = np.sqrt((padded.reshape(num_frames, hop) ** 2).mean(axis=1))
    loudness = np.convolve(np.pad(loudness, 1, mode="edge"), [0.25, 0.5, 0.25], mode="valid")
    loud = np.percentile(loudness, 90)
    if loud < 1e-4:
        return np.zeros(num_frames)
    return np.asarray(np.clip(loudness / loud, 0.0, 1.0) ** 0.8)


def _espeak_speech(program: str, num_frames: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, 77])
    words = [SENTENCES[i] for i in rng.integers(len(SENTENCES), size=2 + num_frames // 60)]
    voice = ["en-us+m3", "en-us+f3", "en-gb+m1", "en-gb+f2"][int(rng.integers(4))]
    command = [program, "-v", voice, "-s", str(int(rng.integers(140, 185))), "--stdout", " ".join(words)]
    wav = subprocess.run(command, check=True, capture_output=True).stdout
    audio, rate = soundfile.read(io.BytesIO(wav), dtype="float32")
    audio = soxr.resample(audio, rate, SAMPLE_RATE)
    length = num_frames * SAMPLE_RATE // FPS
    return _to_peak(np.pad(audio, (0, max(0, length - len(audio))))[:length])


def _formant_speech(num_frames: int, seed: int) -> np.ndarray:
    """Phrases of syllables with pauses between them.

    A syllable is consonant noise, then one vowel that glides into another. Formants shape the voice's
    harmonics.
    """
    rng = np.random.default_rng([seed, 78])
    length = num_frames * SAMPLE_RATE // FPS
    control = np.arange(0, length, 80)  # 200 Hz control rate
    amplitude, noise = np.zeros(len(control)), np.zeros(len(control))
    formants = np.zeros((len(control), 3))
    pitch = np.zeros(len(control))
    base_pitch = float(rng.uniform(95, 220))
    tract = float(rng.uniform(0.92, 1.15)) * (1.1 if base_pitch > 165 else 1.0)
    now, left_in_phrase = float(rng.uniform(0, 0.25)), int(rng.integers(4, 10))
    times = control / SAMPLE_RATE
    while now < length / SAMPLE_RATE:
        duration = float(rng.uniform(0.16, 0.34))
        onset = float(rng.uniform(0.03, 0.07))
        vowel, glide = VOWELS[rng.integers(10)] * tract, VOWELS[rng.integers(10)] * tract
        inside = (times >= now) & (times < now + duration)
        position = (times[inside] - now) / duration
        loudness = float(rng.uniform(0.45, 1.0))
        shape = np.clip(position * duration / onset - 0.6, 0, 1) * np.clip((1 - position) / 0.35, 0, 1) ** 0.7
        amplitude[inside] = loudness * shape
        noise[inside] = (
            0.25 * loudness * np.exp(-(((position * duration - 0.6 * onset) / (0.5 * onset)) ** 2))
        )
        formants[inside] = vowel + (glide - vowel) * np.clip(position * 1.4 - 0.5, 0, 1)[:, None]
        pitch[inside] = base_pitch * (1.08 - 0.16 * position) * (0.9 + 0.02 * left_in_phrase)
        now += duration
        left_in_phrase -= 1
        if left_in_phrase == 0:
            now += float(rng.uniform(0.18, 0.5))
            left_in_phrase = int(rng.integers(4, 10))
    pitch[pitch == 0] = base_pitch
    formants[formants[:, 0] == 0] = VOWELS[8]

    samples = np.arange(length)
    phase = 2 * np.pi * np.cumsum(np.interp(samples, control, pitch)) / SAMPLE_RATE
    number = np.arange(1, HARMONICS + 1)
    frequency = pitch[:, None] * number  # (C, H)
    distance = (frequency[:, :, None] - formants[:, None, :]) / BANDWIDTHS
    gains = (1.0 / (1.0 + distance**2)).sum(axis=2) * number**-0.4 * (frequency < 0.45 * SAMPLE_RATE)
    gains *= (amplitude / np.maximum(np.linalg.norm(gains, axis=1), 1e-6))[:, None]
    voiced = np.zeros(length)
    for k in range(HARMONICS):
        voiced += np.interp(samples, control, gains[:, k]) * np.sin((k + 1) * phase)
    hiss = np.diff(rng.standard_normal(length + 1)) * np.interp(samples, control, noise) * 0.3
    return _to_peak((voiced + hiss).astype(np.float32))


def _to_peak(audio: np.ndarray) -> np.ndarray:
    return np.asarray(audio * (0.7 / max(1e-6, float(np.abs(audio).max()))), dtype=np.float32)


SENTENCES = (
    "Hello everyone, and welcome back to our little shop.",
    "Look at this beautiful thing that I brought for you today.",
    "It is light, it is strong, and it fits into every bag.",
    "You can turn it around and see every side of it.",
    "The colour is even better when you hold it in your hand.",
    "Many of you asked about it, so here it is at last.",
    "If you order now, it will be with you tomorrow morning.",
    "I use mine every single day, and I would not miss it.",
    "Tell me in the comments which one you like the most.",
    "That is all for today, thank you for watching.",
)
