"""Colours as they were meant: pictures in Display P3, Adobe RGB, ProPhoto, CMYK and others to sRGB.

A picture says what its numbers mean by an ICC profile or, shorter, by code points (H.273: HEIC, AVIF
and PNG's cICP), by chromaticities and a gamma (PNG), or by the camera standard's name for Adobe RGB (Exif).
The short forms become an ICC profile here, so that one library converts all of them.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from PIL import Image, ImageCms

from server.decoding.formats import RejectedFileError

Chromaticities = Sequence[float]
"""x and y of white, red, green and blue (CIE 1931)."""

_D65: Final = (0.3127, 0.3290)
_DISPLAY_P3: Final = (*_D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060)
_PRIMARIES: Final[dict[int, Chromaticities]] = {
    9: (*_D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),  # BT.2020
    11: (0.314, 0.351, *_DISPLAY_P3[2:]),  # the cinema's P3
    12: _DISPLAY_P3,
}
"""Code points whose colours are visibly not sRGB's."""
_ADOBE_RGB: Final = (*_D65, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
_SRGB_PRIMARIES: Final = (*_D65, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
_SRGB_CURVE: Final = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
_GAMMAS: Final = {4: (2.2,), 5: (2.8,), 8: (1.0,)}
_HIGH_DYNAMIC_RANGE: Final = (16, 18)
_ADOBE_GAMMA: Final = 2.19921875
_EXIF_INTEROP: Final = 0xA005
_USUAL_GAMMA: Final = 0.45455
"""What PNG writers put for sRGB."""

_FROM_XYZ_TO_CONES: Final = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
_D50: Final = np.array([0.9642, 1.0, 0.8249])

_MODES: Final = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}
"""Mode of a picture by the colour space of its profile."""


def _xyz(x: float, y: float) -> np.ndarray:
    return np.array([x / y, 1.0, (1 - x - y) / y])


def _columns(chromaticities: Chromaticities) -> np.ndarray:
    """The XYZ of red, green and blue beside each other, seen under D50 as ICC wants it (Bradford)."""
    white, *colours = (_xyz(x, y) for x, y in zip(chromaticities[::2], chromaticities[1::2], strict=True))
    primaries = np.stack(colours, axis=1)
    seen, wanted = _FROM_XYZ_TO_CONES @ white, _FROM_XYZ_TO_CONES @ _D50
    adapt = np.linalg.inv(_FROM_XYZ_TO_CONES) @ np.diag(wanted / seen) @ _FROM_XYZ_TO_CONES
    return np.asarray(adapt @ primaries @ np.diag(np.linalg.solve(primaries, white)))


def _fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65_536)) for value in values)


def matrix_profile(chromaticities: Chromaticities, curve: Sequence[float]) -> bytes:
    """An ICC profile of three primaries and one curve: (gamma,), or sRGB's five numbers. Raises ValueError or
    LinAlgError for colours that span nothing.
    """
    columns = _columns(chromaticities)
    if not np.isfinite(columns).all() or np.abs(columns).max() > 100 or not 0.1 < curve[0] < 10:
        raise ValueError("not the primaries of a picture")
    text = b"mluc" + struct.pack(">IIIHHII", 0, 1, 12, 0x656E, 0x5553, 2, 28) + b"\0x\0\0"
    para = b"para" + struct.pack(">IHH", 0, 3 if len(curve) == 5 else 0, 0) + _fixed(*curve)
    tags = {b"desc": text, b"cprt": text, b"wtpt": b"XYZ \0\0\0\0" + _fixed(*_D50)}
    for index, name in enumerate((b"r", b"g", b"b")):
        tags[name + b"XYZ"] = b"XYZ \0\0\0\0" + _fixed(*columns[:, index])
        tags[name + b"TRC"] = para
    table, body, start = b"", b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        content += b"\0" * (-len(content) % 4)
        table += name + struct.pack(">II", start + len(body), len(content))
        body += content
    head = struct.pack(
        ">I4sI4s4s4s12s4s", 0, b"\0\0\0\0", 0x04300000, b"mntr", b"RGB ", b"XYZ ", b"", b"acsp"
    )
    head += bytes(28) + _fixed(*_D50) + bytes(48)
    profile = head + struct.pack(">I", len(tags)) + table + body
    return struct.pack(">I", len(profile)) + profile[4:]


def profile_of_code_points(primaries: int, transfer: int) -> bytes | None:
    """A profile for colours that are not sRGB's, by their numbers in H.273.

    Raises RejectedFileError for high dynamic range.
    """
    if transfer in _HIGH_DYNAMIC_RANGE:
        raise RejectedFileError(
            "unsupported_media_type", "The picture is HDR (PQ or HLG). Export it in standard range."
        )
    curve = _GAMMAS.get(transfer, _SRGB_CURVE)
    if primaries not in _PRIMARIES and curve is _SRGB_CURVE:
        return None
    return matrix_profile(_PRIMARIES.get(primaries, _SRGB_PRIMARIES), curve)


def _code_points(image: Image.Image, data: bytes) -> tuple[int, int] | None:
    """Primaries and transfer of a picture that names them. `data` is the beginning of its file."""
    if image.format == "PNG":
        found = data.find(b"cICP", 0, max(0, data.find(b"IDAT")))
        return (data[found + 4], data[found + 5]) if 0 < found < len(data) - 8 else None
    nclx: dict[str, Any] | None = image.info.get("nclx_profile")
    if nclx is not None:
        return int(nclx["color_primaries"]), int(nclx["transfer_characteristics"])
    if image.format == "AVIF":
        found = data.find(b"colrnclx")
        if 0 < found < len(data) - 12:
            primaries, transfer = struct.unpack_from(">HH", data, found + 8)
            return primaries, transfer
    return None


def _profile(image: Image.Image, data: bytes) -> bytes | None:
    points = _code_points(image, data)
    embedded: bytes | None = image.info.get("icc_profile")
    if points is not None and (image.format == "PNG" or not embedded):  # PNG ranks cICP first
        return profile_of_code_points(*points)
    if embedded or (image.format == "PNG" and "srgb" in image.info):
        return embedded or None
    gamma: float | None = image.info.get("gamma")
    if image.format == "PNG" and gamma:
        chromaticities = image.info.get("chromaticity", _SRGB_PRIMARIES)
        if abs(gamma - _USUAL_GAMMA) < 1e-4:
            return matrix_profile(chromaticities, _SRGB_CURVE)
        return matrix_profile(chromaticities, (1 / gamma,))
    if image.format == "JPEG" and image.getexif().get_ifd(_EXIF_INTEROP).get(1) == "R03":
        return matrix_profile(_ADOBE_RGB, (_ADOBE_GAMMA,))
    return None


def profile_of(image: Image.Image, data: bytes) -> bytes | None:
    """The ICC profile that says what the colours of an opened picture mean; None: sRGB, as far as can be
    known. `data` is the beginning of its file. Raises RejectedFileError for HDR.
    """
    try:
        return _profile(image, data)
    except (ValueError, TypeError, SyntaxError, ArithmeticError, struct.error, np.linalg.LinAlgError):
        return None  # nonsense says nothing


def _transform(meant: ImageCms.ImageCmsProfile, mode: str, flags: int) -> ImageCms.ImageCmsTransform:
    srgb = ImageCms.createProfile("sRGB")
    flags |= ImageCms.Flags.BLACKPOINTCOMPENSATION
    return ImageCms.buildTransform(meant, srgb, mode, "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC, flags)


def _of_grey(image: Image.Image, meant: ImageCms.ImageCmsProfile) -> Image.Image:
    """By a table of all 256 greys: the library's shortcut for whole pictures is off by several steps."""
    greys = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    table = _transform(meant, "L", ImageCms.Flags.NOOPTIMIZE).apply(greys)
    return Image.merge("RGB", [image.point(list(band.tobytes())) for band in table.split()])


def _of_colours(image: Image.Image, meant: ImageCms.ImageCmsProfile) -> Image.Image:
    """The picture itself if none of its colours would change by more than rounding."""
    transform = _transform(meant, image.mode, ImageCms.Flags.HIGHRESPRECALC)
    if image.mode == "RGB":
        steps = np.linspace(0, 255, 9).round().astype(np.uint8)
        before = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 3)
        after = np.asarray(transform.apply(Image.fromarray(before)), dtype=int)
        if np.abs(after - before).max() <= 1:
            return image
    converted: Image.Image = transform.apply(image)
    return converted


def to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """An RGB, L or CMYK picture as sRGB. A profile that is damaged, or of other colours, says nothing."""
    try:
        meant = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = meant.profile.xcolor_space
        if space == "RGB " and image.mode == "L":  # greys have the curves of their colours
            image = image.convert("RGB")
        if image.mode != _MODES.get(space):
            return image
        return _of_grey(image, meant) if image.mode == "L" else _of_colours(image, meant)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image
