"""Files of all sorts through the decoder, in this process without a sandbox, and what FFmpeg says of them."""

from __future__ import annotations

import io
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from contract.settings import Settings
from server.decoding.decoded import DecodedFile, limits_of
from server.decoding.decoders import decode, libraries_for, load_decoders
from server.decoding.formats import KIND_OF_FIELD, Limits, RejectedFileError
from tests.server.inputs import samples

CASES = Path(__file__).parents[1] / "data" / "cases"
LIMITS = limits_of(Settings())
needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="the right values are ffmpeg's")


@dataclass(frozen=True)
class Heard:
    """Decoded speech. `samples` is (N, C) float32."""

    samples: np.ndarray
    rate: int
    warnings: list[str]
    format: str

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate


def decode_here(field: str, source: Path, target: Path, limits: Limits) -> DecodedFile:
    """Decode a file in this process, outside the sandbox. Raises RejectedFileError."""
    with source.open("rb") as file, target.open("w+b") as decoded:
        decoders, _ = load_decoders(libraries_for(file))
        return DecodedFile.of(decode(decoders, file, decoded, KIND_OF_FIELD[field], limits), field)


def _decoded(data: bytes, field: str) -> tuple[bytes, DecodedFile]:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in", Path(folder) / "out"
        source.write_bytes(data)
        found = decode_here(field, source, target, LIMITS)
        return target.read_bytes(), found


def heard(data: bytes) -> Heard:
    """Raises RejectedFileError."""
    wav, found = _decoded(data, "audio")
    decoded, rate = soundfile.read(io.BytesIO(wav), dtype="float32", always_2d=True)
    assert (len(decoded), rate) == (found.samples, found.rate)
    return Heard(decoded, rate, [warning.code for warning in found.warnings], found.format)


def seen(data: bytes) -> np.ndarray:
    """The photo as (H, W, 3) uint8. Raises RejectedFileError."""
    png, found = _decoded(data, "person_image")
    with Image.open(io.BytesIO(png)) as image:
        assert (image.format, image.mode, image.info) == ("PNG", "RGB", {})
        assert image.size == (found.width, found.height)
        return np.asarray(image)


def refused(data: bytes, field: str = "audio") -> str:
    """The code of the refusal."""
    with pytest.raises(RejectedFileError) as caught:
        _decoded(data, field)
    return caught.value.code


def by_ffmpeg(data: bytes, rate: int, channels: int) -> np.ndarray:
    """What the `ffmpeg` command decodes, (N, C) float32."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        command = ["ffmpeg", "-v", "quiet", "-i", file.name, "-map", "0:a:0", "-ar", str(rate)]
        command += ["-ac", str(channels), "-c:a", "pcm_s16le", "-f", "s16le", "-"]
        done = subprocess.run(command, capture_output=True, check=False)
    return np.frombuffer(done.stdout, "<i2").reshape(-1, channels).astype(np.float32) / 32_768


def encoded(container: str, codec: str, sound: np.ndarray, rate: int, into: Any = None) -> bytes:
    """(N, C) float32 as a sound file. `into` is where it is written, a BytesIO by default."""
    into = io.BytesIO() if into is None else into
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[sound.shape[1]]
    with av.open(into, mode="w", format=container) as file:
        stream: Any = file.add_stream(codec, rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound.T), format="fltp", layout=layout)
        frame.sample_rate = rate
        resampler = av.AudioResampler(stream.format, layout, rate, frame_size=stream.frame_size or 4096)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            file.mux(stream.encode(part))
        file.mux(stream.encode(None))
    return bytes(into.getvalue())


class Pipe(io.RawIOBase):
    """Where nothing that was written can be changed any more."""

    def __init__(self) -> None:
        self._written = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._written += data
        return len(data)

    def getvalue(self) -> bytearray:
        return self._written


def wav(sound: np.ndarray, rate: int = 16_000, subtype: str = "PCM_16") -> bytes:
    """(N, C) float32 as a WAV."""
    buffer = io.BytesIO()
    soundfile.write(buffer, sound, rate, format="WAV", subtype=subtype)
    return buffer.getvalue()


def decibels(ratio: float) -> float:
    return float(20 * np.log10(max(ratio, 1e-9)))


def level(sound: np.ndarray) -> float:
    return decibels(float(np.sqrt(np.mean(np.square(sound)))))


def peak(sound: np.ndarray) -> float:
    return decibels(float(np.abs(sound).max()))


TONE = samples(1.3, 16_000)
"""(N, 1) float32 at 16 kHz."""
