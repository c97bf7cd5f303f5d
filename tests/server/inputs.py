"""Small inputs for requests, made on the spot."""

from __future__ import annotations

import io
from typing import Any

import av
import numpy as np
import soundfile
from PIL import Image

Files = list[tuple[str, Any]]


def image_bytes(
    kind: str = "PNG", size: tuple[int, int] = (64, 96), mode: str = "RGB", **options: Any
) -> bytes:
    """A colour gradient as an image file."""
    width, height = size
    rows, columns = np.mgrid[0:height, 0:width]
    pixels = np.stack([rows * 255 // height, columns * 255 // width, (rows + columns) % 256], axis=-1)
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg_of_scans(size: tuple[int, int], copies: int) -> bytes:
    """A progressive JPEG whose last scan comes so many times more: each is a pass over all pixels."""
    buffer = io.BytesIO()
    Image.new("RGB", size, "grey").save(buffer, "JPEG", progressive=True, quality=50)
    data = buffer.getvalue()
    scan = data.rindex(b"\xff\xda")
    return data[:scan] + data[scan:-2] * (copies + 1) + data[-2:]


def samples(seconds: float = 1.0, rate: int = 16_000, channels: int = 1) -> np.ndarray:
    """A tone that swells, (N, channels), float32."""
    time = np.arange(round(seconds * rate)) / rate
    tone = np.sin(2 * np.pi * 220 * time) * np.linspace(0.1, 0.5, len(time))
    return np.stack([tone * (1.0 if channel == 0 else 0.5) for channel in range(channels)], 1).astype(
        np.float32
    )


def audio_bytes(
    kind: str = "WAV", seconds: float = 1.0, rate: int = 16_000, channels: int = 1, subtype: str | None = None
) -> bytes:
    """The tone as a sound file; kind "M4A" is AAC in MP4."""
    buffer = io.BytesIO()
    if kind == "M4A":
        with av.open(buffer, mode="w", format="mp4") as container:
            stream = container.add_stream("aac", rate=rate, layout="mono" if channels == 1 else "stereo")
            planar = np.ascontiguousarray(samples(seconds, rate, channels).T)
            frame = av.AudioFrame.from_ndarray(planar, "fltp", "mono" if channels == 1 else "stereo")
            frame.sample_rate = rate
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    else:
        soundfile.write(buffer, samples(seconds, rate, channels), rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def video_bytes(frames: int = 10, size: tuple[int, int] = (64, 96), kind: str = "mp4") -> bytes:
    """A video of one changing colour."""
    buffer = io.BytesIO()
    with av.open(buffer, mode="w", format=kind) as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for index in range(frames):
            pixels = np.full((size[1], size[0], 3), index * 20 % 256, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


PERSON = image_bytes()
PRODUCT = image_bytes("JPEG", (48, 48))
SPEECH = audio_bytes()


def form(**changes: Any) -> Files:
    """A good multipart request, changed: a value replaces a field (lists repeat it), None leaves it out."""
    fields: dict[str, Any] = {
        "person_image": ("person.png", PERSON, "image/png"),
        "product_image": ("product.jpg", PRODUCT, "image/jpeg"),
        "audio": ("speech.wav", SPEECH, "audio/wav"),
        "prompt": ["a woman shows a bottle"],
        **changes,
    }
    parts: Files = []
    for name, value in fields.items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, bytes):
                parts.append((name, ("../../../etc/passwd", one)))  # a name that must not matter
            elif one is not None:
                parts.append((name, one if isinstance(one, tuple) else (None, str(one))))
    return parts
