"""A small formant synthesiser: nine seconds of speech without a recording, a voice or a data set.

Source and filter, as in Klatt, "Software for a cascade/parallel formant synthesizer", JASA 67 (1980): a
glottal pulse train and noise, shaped by resonances that glide from sound to sound.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 24_000
HOP = 120  # 5 ms
WINDOW = 480  # 20 ms


@dataclass(frozen=True)
class Sound:
    """One phoneme: its formants (Hz), the waveform of voice and noise (0–1), how long it lasts (ms)."""

    formants: tuple[int, int, int]
    voice: float
    noise: float
    duration_ms: int


SOUNDS = {
    "_": Sound((500, 1500, 2500), 0.0, 0.0, 100),
    ".": Sound((500, 1500, 2500), 0.0, 0.0, 200),
    "AA": Sound((730, 1090, 2440), 1.0, 0.0, 125),
    "AE": Sound((660, 1720, 2410), 1.0, 0.0, 120),
    "AH": Sound((640, 1190, 2390), 0.95, 0.0, 85),
    "AO": Sound((570, 840, 2410), 1.0, 0.0, 125),
    "EH": Sound((530, 1840, 2480), 1.0, 0.0, 95),
    "ER": Sound((490, 1350, 1690), 0.95, 0.0, 105),
    "IH": Sound((390, 1990, 2550), 0.95, 0.0, 75),
    "IY": Sound((270, 2290, 3010), 0.95, 0.0, 110),
    "OH": Sound((460, 920, 2400), 1.0, 0.0, 120),
    "UH": Sound((440, 1020, 2240), 0.95, 0.0, 75),
    "UW": Sound((300, 870, 2240), 0.95, 0.0, 110),
    "W": Sound((300, 610, 2200), 0.6, 0.0, 65),
    "Y": Sound((270, 2200, 2950), 0.6, 0.0, 60),
    "L": Sound((360, 1150, 2700), 0.65, 0.0, 65),
    "R": Sound((330, 1100, 1550), 0.65, 0.0, 70),
    "M": Sound((270, 1000, 2200), 0.45, 0.0, 75),
    "N": Sound((280, 1600, 2600), 0.45, 0.0, 70),
    "NG": Sound((280, 2200, 2700), 0.42, 0.0, 85),
    "V": Sound((260, 1200, 2300), 0.4, 0.08, 60),
    "DH": Sound((280, 1500, 2550), 0.4, 0.06, 45),
    "Z": Sound((280, 1750, 4300), 0.3, 0.22, 75),
    "S": Sound((400, 4600, 6600), 0.0, 0.34, 100),
    "SH": Sound((400, 2400, 3600), 0.0, 0.4, 105),
    "F": Sound((400, 1500, 7200), 0.0, 0.14, 85),
    "H": Sound((500, 1500, 2500), 0.0, 0.2, 55),
    "B": Sound((220, 900, 2200), 0.16, 0.0, 60),
    "D": Sound((240, 1750, 2650), 0.16, 0.02, 50),
    "G": Sound((240, 2000, 2300), 0.16, 0.02, 55),
    "P": Sound((400, 1000, 2200), 0.0, 0.0, 65),
    "T": Sound((400, 3600, 5200), 0.0, 0.0, 55),
    "K": Sound((400, 2000, 2500), 0.0, 0.0, 60),
    "PH": Sound((400, 1100, 2300), 0.0, 0.2, 28),
    "TH": Sound((400, 3800, 5600), 0.0, 0.34, 30),
    "KH": Sound((400, 2000, 2600), 0.0, 0.28, 32),
}

SENTENCES = (
    # Hello and welcome!
    "H EH L OH UH _ AE N D W EH L KH AH M .",
    # I would like to show you something lovely.
    "AA IH W UH D L AA IH KH T UW SH OH UH Y UW _ S AH M F IH NG L AH V L IY .",
    # This little bottle keeps your skin soft all day long.
    "DH IH S L IH T TH UH L B AA T TH UH L K KH IY P PH S Y AO R S K KH IH N S AO F T TH "
    "_ AO L D EH IY L AO NG .",
    # Take a closer look. You will love it!
    "T TH EH IY K KH AH K L OH UH S ER L UH K KH _ Y UW W IH L L AH V IH T TH .",
)


def speak() -> NDArray[np.float32]:
    """About nine seconds of mono speech at 24 kHz, within ±0.8; always the same samples."""
    frames = [frame for sentence in SENTENCES for frame in _contour(sentence.split())]
    track = np.array(frames)  # (T, 6): three formants, voice, noise, pitch
    kernel = np.hanning(11)
    kernel /= kernel.sum()
    padded = np.pad(track, ((5, 5), (0, 0)), mode="edge")
    # The mouth cannot jump: every parameter glides over about 50 ms.
    track = np.stack(
        [np.convolve(padded[:, column], kernel, "valid") for column in range(track.shape[1])], axis=1
    )
    samples = len(track) * HOP
    at_sample = np.arange(samples) / HOP
    voice, noise, pitch = (
        np.interp(at_sample, np.arange(len(track)), track[:, column]) for column in (3, 4, 5)
    )
    source = voice * _glottis(pitch) + noise * np.random.default_rng(0).standard_normal(samples)
    speech = _resonate(source, track[:, :3])
    waveform: NDArray[np.float32] = (0.8 * speech / np.abs(speech).max()).astype(np.float32)
    return waveform


def _contour(names: list[str]) -> list[tuple[float, ...]]:
    """The parameters of one sentence every 5 ms; the pitch rises at the start and falls towards the end."""
    total = sum(SOUNDS[name].duration_ms for name in names)
    frames: list[tuple[float, ...]] = []
    spoken = 0
    for name in names:
        sound = SOUNDS[name]
        for _ in range(sound.duration_ms // 5):
            place = spoken / total
            accent = 14 * np.sin(2 * np.pi * place * total / 420) * sound.voice
            pitch = 172 + 46 * np.sin(np.pi * min(1.0, place * 1.5) ** 0.8) - 34 * place + accent
            frames.append((*sound.formants, sound.voice, sound.noise, float(pitch)))
            spoken += 5
    return frames


def _glottis(pitch: NDArray[np.float64]) -> NDArray[np.float64]:
    """The derivative of Rosenberg's glottal pulse: opens for 40 % of a period, closes within 16 %, rests."""
    phase = np.cumsum(pitch / SAMPLE_RATE) % 1.0
    opening = np.sin(np.pi * phase / 0.4)
    closing = -2.5 * np.sin(np.pi * (phase - 0.4) / 0.16)
    return np.where(phase < 0.4, opening, np.where(phase < 0.56, closing, 0.0))


def _resonate(source: NDArray[np.float64], formants: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shape each 20 ms of the source by the formants of that moment, and overlap-add."""
    window = np.hanning(WINDOW + 1)[:-1]
    size = 1024  # room for the resonances to ring out within a frame
    frequency = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    result = np.zeros(len(source) + size)
    for index, (first, second, third) in enumerate(formants):
        start = index * HOP
        piece = source[start : start + WINDOW]
        piece = np.pad(piece, (0, WINDOW - len(piece))) * window
        response = np.ones_like(frequency, dtype=complex)
        for centre, width in ((first, 80), (second, 110), (third, 170), (max(3500.0, third + 700), 260)):
            pole = np.exp((-np.pi * width + 2j * np.pi * centre) / SAMPLE_RATE)
            turn = np.exp(-2j * np.pi * frequency / SAMPLE_RATE)
            gain = abs((1 - pole) * (1 - np.conj(pole)))
            response *= gain / ((1 - pole * turn) * (1 - np.conj(pole) * turn))
        # Lips radiate high frequencies better than low ones.
        response *= 1 + frequency / 1500
        result[start : start + size] += np.fft.irfft(np.fft.rfft(piece, size) * response, size)
    return result[: len(source)]
