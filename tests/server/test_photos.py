"""Photos as people bring them: in their true colours, upright, of any telephone; or refused."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pi_heif
import pytest
from PIL import Image, ImageCms

from server.decoding.colour import matrix_profile
from tests.server.conftest import ApiFactory
from tests.server.decoded import CASES, refused, seen
from tests.server.inputs import SPEECH, form, image_bytes, jpeg_of_scans, video_bytes

pytestmark = pytest.mark.slow

D65, D50 = (0.3127, 0.3290), (0.3457, 0.3585)
SPACES: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    # white, red, green, blue; curve
    "Display P3": (
        (*D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
        (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045),
    ),
    "Adobe RGB": ((*D65, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06), (2.19921875,)),
    "ProPhoto": ((*D50, 0.7347, 0.2653, 0.1596, 0.8404, 0.0366, 0.0001), (1.8,)),
    "Rec. 2020": ((*D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046), (2.2,)),
}
LIMIT = {"PNG": 1.0, "WEBP": 1.0, "JPEG": 1.0, "AVIF": 2.0}
"""Mean error of 255. AVIF loses some in its own colours before any are converted."""


def scene(size: tuple[int, int] = (192, 128)) -> Image.Image:
    """Skin, wood, sky and a strong red, softly shaded."""
    width, height = size
    colours = np.array([[224, 172, 150], [140, 90, 50], [110, 160, 220], [200, 40, 35]], float)
    columns = colours[np.arange(width) * 4 // width]
    shade = np.linspace(0.5, 1.0, height)[:, None, None]
    return Image.fromarray((columns[None] * shade).round().astype(np.uint8))


def in_space(image: Image.Image, profile: bytes, mode: str = "RGB") -> Image.Image:
    """The same picture in the numbers of another colour space."""
    there = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
    moved = ImageCms.profileToProfile(image, ImageCms.createProfile("sRGB"), there, intent, mode)
    assert moved is not None
    moved.info.clear()
    return moved


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def error(photo: np.ndarray, right: Image.Image) -> float:
    assert photo.shape[1::-1] == right.size
    return float(np.abs(photo.astype(int) - np.asarray(right, int)).mean())


LOSSLESS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "WEBP": {"lossless": True},
    "JPEG": {"quality": 100, "subsampling": 0},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
}


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize("space", SPACES)
def test_a_photo_with_a_profile_keeps_its_colours(kind: str, space: str) -> None:
    profile = matrix_profile(*SPACES[space])
    there = in_space(scene(), profile)
    assert error(np.asarray(there), scene()) > 3, "these colours would have changed visibly"
    assert error(seen(saved(there, kind, icc_profile=profile, **LOSSLESS[kind])), scene()) < LIMIT[kind]


@pytest.mark.parametrize("name", ["icc_p3.jpg", "icc_adobe.jpg"])
def test_a_photo_of_a_camera_is_converted_as_its_profile_says(name: str) -> None:
    data = (CASES / name).read_bytes()
    with Image.open(io.BytesIO(data)) as image:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        right = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"))
        dropped = error(np.asarray(image), right or image)
    assert right is not None
    assert dropped > 3
    assert error(seen(data), right) < 1.0


@pytest.mark.parametrize("name", ["p3_profile.heic", "p3_code_points.heic"])
def test_a_heic_in_display_p3_keeps_its_colours(name: str) -> None:
    photo = seen((CASES / name).read_bytes())
    corners = [tuple(photo[y, x]) for y, x in ((16, 24), (16, 72), (48, 24), (48, 72))]
    assert np.abs(np.array(corners, int) - QUADRANTS).max() <= 3


def avif_with_code_points(image: Image.Image, primaries: int, transfer: int) -> bytes:
    data = bytearray(saved(image, "AVIF", **LOSSLESS["AVIF"]))
    at = data.index(b"colrnclx") + 8
    data[at : at + 4] = struct.pack(">HH", primaries, transfer)
    return bytes(data)


def png_chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_with(image: Image.Image, *chunks: bytes) -> bytes:
    data = saved(image, "PNG")
    return data[:33] + b"".join(chunks) + data[33:]


def chromaticities(space: str) -> bytes:
    return png_chunk(b"cHRM", struct.pack(">8I", *(round(value * 100_000) for value in SPACES[space][0])))


def test_colours_that_are_told_without_a_profile_are_kept_too() -> None:
    p3 = in_space(scene(), matrix_profile(*SPACES["Display P3"]))
    adobe = in_space(scene(), matrix_profile(*SPACES["Adobe RGB"]))
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA005] = {1: "R03"}
    gamma = png_chunk(b"gAMA", struct.pack(">I", round(100_000 / 2.19921875)))
    told = {
        "AVIF": avif_with_code_points(p3, 12, 13),
        "PNG by code points": png_with(p3, png_chunk(b"cICP", bytes((12, 13, 0, 1)))),
        "PNG by gamma": png_with(adobe, gamma, chromaticities("Adobe RGB")),
        "JPEG by Exif": saved(adobe, "JPEG", exif=exif, **LOSSLESS["JPEG"]),
    }
    for name, data in told.items():
        assert error(seen(data), scene()) < 1.0, name


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "AVIF"])
def test_srgb_pixels_are_not_touched(kind: str) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    plain, profiled = (saved(scene(), kind, icc_profile=profile) for profile in (None, srgb))
    np.testing.assert_array_equal(seen(plain), seen(profiled))
    srgb_gamma = png_with(scene(), png_chunk(b"gAMA", struct.pack(">I", 45_455)))
    np.testing.assert_array_equal(seen(srgb_gamma), np.asarray(scene()))


@pytest.mark.parametrize(
    "profile", [b"", b"garbage", b"\0" * 400, matrix_profile(*SPACES["Display P3"])[:200]]
)
def test_a_profile_that_is_damaged_refuses_no_photo(profile: bytes) -> None:
    np.testing.assert_array_equal(seen(saved(scene(), "PNG", icc_profile=profile)), np.asarray(scene()))


def test_a_profile_of_other_colours_than_the_photo_says_nothing() -> None:
    data = saved(scene(), "PNG", icc_profile=cmyk_profile())
    np.testing.assert_array_equal(seen(data), np.asarray(scene()))


def grey_profile(gamma: float) -> bytes:
    profile = bytearray(matrix_profile(SPACES["Adobe RGB"][0], (gamma,)))
    profile[16:20] = b"GRAY"
    return bytes(profile).replace(b"rTRC", b"kTRC")


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_grey_photos_are_converted_by_their_curve(mode: str) -> None:
    steps = np.arange(256, dtype=np.uint8).repeat(64).reshape(256, 64)
    image = Image.fromarray(steps).convert(mode)
    photo = seen(saved(image, "PNG", icc_profile=grey_profile(1.0)))
    linear = np.arange(256) / 255
    right = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055) * 255
    assert np.abs(photo[:, 32].astype(float) - right[:, None]).max() < 1.5


def cmyk_profile() -> bytes:
    """A press whose black ink is dark blue."""
    lab = []
    for corner in range(16):
        inks = [corner >> 3 & 1, corner >> 2 & 1, corner >> 1 & 1, corner & 1]
        lightness = 100.0 * (0.6 ** sum(inks[:3])) * (0.3 if inks[3] else 1.0)
        lab.append((lightness, 0.0, -30.0 * inks[3]))
    words = [
        round(value) for light, a, b in lab for value in (light * 652.8, (a + 128) * 256, (b + 128) * 256)
    ]
    table = b"mft2\0\0\0\0" + bytes((4, 3, 2, 0))
    table += struct.pack(">9i", 65_536, 0, 0, 0, 65_536, 0, 0, 0, 65_536) + struct.pack(">HH", 2, 2)
    table += (
        struct.pack(">8H", *([0, 65_535] * 4))
        + struct.pack(">48H", *words)
        + struct.pack(">6H", *([0, 65_535] * 3))
    )
    base = matrix_profile(*SPACES["Adobe RGB"])
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63_190, 65_536, 54_061)
    tags = ((b"A2B0", table), (b"wtpt", white))
    body, index = b"", struct.pack(">I", len(tags))
    for name, content in tags:
        index += name + struct.pack(">II", 128 + 4 + 12 * len(tags) + len(body), len(content))
        body += content + b"\0" * (-len(content) % 4)
    head = bytearray(base[:128])
    head[8:24] = struct.pack(">I4s4s4s", 0x02400000, b"prtr", b"CMYK", b"Lab ")
    profile = bytes(head) + index + body
    return struct.pack(">I", len(profile)) + profile[4:]


def test_a_jpeg_in_printing_inks_is_converted_by_its_profile() -> None:
    black_ink = Image.new("CMYK", (64, 64), (0, 0, 0, 255))
    plain = seen(saved(black_ink, "JPEG", quality=100))[32, 32]
    meant = seen(saved(black_ink, "JPEG", quality=100, icc_profile=cmyk_profile()))[32, 32]
    assert plain.max() <= 2
    assert meant[2] > 90
    assert meant[2] > meant[0] + 30, "this press prints black in blue"


@pytest.mark.parametrize("data", [avif_with_code_points(scene(), 9, 16), (CASES / "hlg.heic").read_bytes()])
def test_high_dynamic_range_is_refused_rather_than_shown_wrong(data: bytes) -> None:
    assert refused(data, "person_image") == "unsupported_media_type"


# Telephones


def test_the_first_of_several_pictures_in_one_jpeg_is_taken() -> None:
    photo = seen((CASES / "mpo.jpg").read_bytes())
    assert photo.shape == (768, 480, 3)
    pictures = saved(scene(), "MPO", save_all=True, append_images=[scene().rotate(180)])
    assert error(seen(pictures), scene()) < 4


BEHIND: dict[str, bytes] = {
    "a film": video_bytes(10),
    "a film and a trailer": video_bytes(10) + b"\0\0\x01\x0aMotionPhoto_Data" + b"SEFH" + bytes(40) + b"SEFT",
    "another photo": image_bytes("JPEG", (200, 200)),
    "half a photo": image_bytes("JPEG", (200, 200))[:1500],
    "text": b"\xff\xda not a scan " * 100,
}


@pytest.mark.parametrize("behind", BEHIND)
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_is_read_whatever_lies_behind_it(behind: str, progressive: bool) -> None:
    alone = saved(scene(), "JPEG", quality=95, progressive=progressive)
    np.testing.assert_array_equal(seen(alone + BEHIND[behind]), seen(alone))


TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_90",
    7: "TRANSVERSE",
    8: "ROTATE_270",
}
"""How a camera stores what it says to be turned by this orientation."""
QUADRANTS = np.array([(200, 40, 40), (40, 200, 40), (40, 40, 200), (230, 230, 230)])


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("kind", LOSSLESS)
def test_photos_are_turned_upright(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = scene().transpose(Image.Transpose[TURNS[orientation]])
    assert error(seen(saved(stored, kind, exif=exif, **LOSSLESS[kind])), scene()) < 2


def test_a_heic_is_turned_upright() -> None:
    photo = seen((CASES / "turned.heic").read_bytes())
    corners = [photo[y, x] for y, x in ((16, 24), (16, 72), (48, 24), (48, 72))]
    assert np.abs(np.array(corners, int) - QUADRANTS).max() <= 3


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0MM\0*\xff\xff\xff\xff",
        b"Exif\0\0garbage",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0\0\0\0\0",
    ],
)
def test_damaged_exif_data_refuse_no_photo(exif: bytes) -> None:
    assert seen(saved(scene(), "JPEG", exif=exif)).shape == (128, 192, 3)


@pytest.mark.parametrize("name", ["tiles.heic", "tiles_turned.heic"])
def test_a_heic_in_tiles_as_telephones_write_it_is_put_together(name: str) -> None:
    upright = scene((500, 380))
    turned = upright.transpose(Image.Transpose.ROTATE_270) if name == "tiles_turned.heic" else upright
    assert error(seen((CASES / name).read_bytes()), turned) < 2


def test_transparency_becomes_white_in_heic_and_avif() -> None:
    heic = seen((CASES / "alpha.heic").read_bytes())
    assert (heic[16, 24] == 255).all()
    assert np.abs(heic[16, 72].astype(int) - QUADRANTS[1]).max() < 8
    clear = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    assert (seen(saved(clear, "AVIF")) == 255).all()


# Size


def large(kind: str, size: tuple[int, int] = (8064, 6048), **options: Any) -> bytes:
    return saved(scene().resize(size, Image.Resampling.NEAREST), kind, **options)


LARGE: dict[str, Callable[[], bytes]] = {
    "JPEG": lambda: large("JPEG", (6000, 9000)),
    "progressive JPEG": lambda: large("JPEG", progressive=True),
    "CMYK JPEG": lambda: saved(
        scene().convert("CMYK").resize((8064, 6048), Image.Resampling.NEAREST), "JPEG"
    ),
    "PNG with transparency": lambda: saved(
        scene().convert("RGBA").resize((8064, 6048), Image.Resampling.NEAREST), "PNG", compress_level=1
    ),
    "PNG of 16 bits": lambda: saved(
        Image.fromarray(np.full((6048, 8064), 40_000, np.uint16)), "PNG", compress_level=1
    ),
    "WebP": lambda: large("WEBP", method=0),
    "AVIF": lambda: large("AVIF", speed=10),
    "HEIC": (CASES / "tiles48.heic").read_bytes,
}


@pytest.mark.parametrize("kind", LARGE)
def test_photos_of_48_megapixels_and_more_are_taken(kind: str, make_api: ApiFactory) -> None:
    """In the sandbox, within its memory."""
    api = make_api()
    data = LARGE[kind]()
    job = api.client.post("/v1/generate", files=form(person_image=data))
    assert job.status_code == 202, job.text
    with Image.open(api.store.local_path(f"jobs/{job.json()['id']}/inputs/person.png")) as image:
        width, height = image.size
        assert 10_000_000 < width * height <= 25_000_000
        with (
            Image.open(io.BytesIO(data), formats=None)
            if kind != "HEIC"
            else pi_heif.open_heif(CASES / "tiles48.heic")[0].to_pillow() as sent
        ):
            assert width / height == pytest.approx(sent.width / sent.height, rel=0.001)
            small = sent.convert("RGB").resize((24, 16), Image.Resampling.BOX)
        if kind != "PNG of 16 bits":
            assert (
                np.abs(
                    np.asarray(image.resize((24, 16), Image.Resampling.BOX), int) - np.asarray(small, int)
                ).mean()
                < 3
            )


def test_a_jpeg_of_many_scans_is_refused_before_it_costs_anything() -> None:
    assert refused(jpeg_of_scans((5000, 5000), 90), "person_image") == "image_too_large"
    assert refused(jpeg_of_scans((64, 64), 1000), "person_image") == "image_too_large"
    assert seen(jpeg_of_scans((64, 64), 20)).shape == (64, 64, 3)


@pytest.mark.parametrize("filler", [b"\xff" * 25_000_000, b"\xd0\xff" * 12_000_000, b"\0" * 25_000_000])
def test_a_jpeg_of_nothing_but_filler_is_refused(filler: bytes) -> None:
    assert refused(b"\xff\xd8\xff" + filler, "person_image") in ("truncated_file", "undecodable_file")


# What is missing


@pytest.mark.parametrize("name", ["turned.heic", "x.heic", "alpha.heic", "p3_profile.heic"])
@pytest.mark.parametrize("kept", [0.2, 0.5, 0.8, 0.99])
def test_a_heic_whose_end_is_missing_is_refused(name: str, kept: float) -> None:
    data = (CASES / name).read_bytes()
    assert refused(data[: int(len(data) * kept)], "person_image") in ("truncated_file", "undecodable_file")


@pytest.mark.parametrize("kind", ["JPEG", "progressive", "PNG", "WEBP", "AVIF", "MPO"])
@pytest.mark.parametrize("kept", [0.2, 0.5, 0.8, 0.99])
def test_a_photo_whose_end_is_missing_is_refused(kind: str, kept: float) -> None:
    options: dict[str, Any] = {"progressive": True} if kind == "progressive" else {}
    data = saved(scene((400, 300)), "JPEG" if kind == "progressive" else kind, **options)
    assert refused(data[: int(len(data) * kept)], "person_image") in ("truncated_file", "undecodable_file")


# What it is said to be

MISNAMED = {
    "a WebP as JPEG": ("person_image", "a.jpg", "image/jpeg", (CASES / "x_webp_named.jpg").read_bytes()),
    "a HEIC as JPEG": ("person_image", "IMG_1.JPG", "image/jpeg", (CASES / "x.heic").read_bytes()),
    "a PNG as WebP": ("product_image", "a.webp", "image/webp", image_bytes()),
    "Opus as WAV": ("audio", "a.wav", "audio/wav", (CASES / "mediarecorder.webm").read_bytes()),
    "a WAV as text": ("audio", "a.txt", "text/plain", None),
}


@pytest.mark.parametrize("case", MISNAMED)
def test_a_file_is_taken_for_what_it_is_unless_the_server_is_strict(case: str, make_api: ApiFactory) -> None:
    field, name, declared, data = MISNAMED[case]
    files = form(**{field: (name, SPEECH if data is None else data, declared)})
    assert make_api().client.post("/v1/validate", files=files).status_code == 200
    answer = make_api(strict_media_types=True).client.post("/v1/validate", files=files)
    assert (answer.status_code, answer.json()["code"], answer.json()["field"]) == (
        415,
        "media_type_mismatch",
        field,
    )


@pytest.mark.parametrize(
    ("declared", "data"),
    [
        ("image/heif", (CASES / "x.heic").read_bytes()),
        ("image/heic", (CASES / "x.heic").read_bytes()),
        ("image/jpg", (CASES / "mpo.jpg").read_bytes()),
        ("", image_bytes()),
    ],
)
def test_a_strict_server_knows_the_names_of_a_type(declared: str, data: bytes, make_api: ApiFactory) -> None:
    files = form(person_image=("a", data, declared))
    assert make_api(strict_media_types=True).client.post("/v1/validate", files=files).status_code == 200
