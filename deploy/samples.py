"""Sample inputs drawn and spoken by our own code: a presenter, a product, speech and prompts.

Nothing is downloaded and nothing depends on chance: the same call writes the same files on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from deploy.sample_speech import SAMPLE_RATE, speak

PROMPTS = (
    "Realistic half body shot of a friendly woman with a chestnut bob and a teal cardigan over a white top, "
    "sitting at a wooden desk in a bright room. She picks up an amber bottle with a cream label with both "
    "hands, lifts it to chest height and tilts it gently towards the camera so that the label can be read.",
    "Holding the amber bottle with a cream label at chest height, she turns it slowly with both hands to "
    "show its side, runs a thumb across the label, and smiles at the camera while she speaks.",
    "She holds the amber bottle with a cream label still at chest height with both hands, label facing the "
    "camera, and ends with a warm smile in a calm, composed pose.",
)
"""One prompt per clip of the sample video."""

Point = tuple[float, float]
Colour = tuple[int, int, int]

SUPERSAMPLING = 3
"""Shapes are drawn at three times the size and averaged down: PIL's own drawing has jagged edges."""


@dataclass(frozen=True)
class Samples:
    person: Path
    product: Path
    audio: Path
    prompts: Path


def write_samples(folder: Path) -> Samples:
    """Write person.png (720×1280), product.png (768×768), speech.wav (24 kHz mono) and prompts.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    samples = Samples(
        person=folder / "person.png",
        product=folder / "product.png",
        audio=folder / "speech.wav",
        prompts=folder / "prompts.txt",
    )
    draw_person().save(samples.person)
    draw_product().save(samples.product)
    soundfile.write(samples.audio, speak(), SAMPLE_RATE, subtype="PCM_16")
    samples.prompts.write_text("\n".join(PROMPTS) + "\n", encoding="utf-8")
    return samples


def colour(code: str) -> Colour:
    """`"#2f7f86"` → (47, 127, 134)."""
    return int(code[1:3], 16), int(code[3:5], 16), int(code[5:7], 16)


def smooth(points: Sequence[Point], closed: bool = True, steps: int = 24) -> list[Point]:
    """A Catmull-Rom curve through `points`: organic outlines from a handful of numbers."""
    count = len(points)
    curve: list[Point] = []
    for index in range(count if closed else count - 1):
        around = [
            points[(index + k) % count] if closed else points[min(max(index + k, 0), count - 1)]
            for k in (-1, 0, 1, 2)
        ]
        (ax, ay), (bx, by), (cx, cy), (dx, dy) = around
        for step in range(steps):
            t = step / steps
            weights = (-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2)
            curve.append(
                (
                    (ax * weights[0] + bx * weights[1] + cx * weights[2] + dx * weights[3]) / 2,
                    (ay * weights[0] + by * weights[1] + cy * weights[2] + dy * weights[3]) / 2,
                )
            )
    return curve if closed else [*curve, points[-1]]


class Canvas:
    """Flat shapes with gradients and soft shadows, in the coordinates of the finished picture."""

    def __init__(self, width: int, height: int, top: str, bottom: str) -> None:
        self.size = (width * SUPERSAMPLING, height * SUPERSAMPLING)
        self.image = self._gradient(top, bottom, 0, height)

    def _gradient(self, top: str, bottom: str, from_y: float, to_y: float) -> Image.Image:
        rows = np.arange(self.size[1]) / SUPERSAMPLING
        mix = np.clip((rows - from_y) / max(1.0, to_y - from_y), 0, 1)[:, None]
        line = np.array(colour(top)) * (1 - mix) + np.array(colour(bottom)) * mix  # (H, 3)
        column = Image.fromarray(line.round().astype(np.uint8)[:, None, :])
        return column.resize(self.size, Image.Resampling.NEAREST)

    def _mask(self, points: Sequence[Point]) -> Image.Image:
        mask = Image.new("L", self.size)
        ImageDraw.Draw(mask).polygon([(x * SUPERSAMPLING, y * SUPERSAMPLING) for x, y in points], fill=255)
        return mask

    def shape(
        self,
        points: Sequence[Point],
        top: str,
        bottom: str | None = None,
        *,
        opacity: float = 1.0,
        blur: float = 0.0,
        inside: Sequence[Point] | None = None,
    ) -> None:
        """Fill an outline, from `top` to `bottom` colour; `inside` keeps the paint within another outline."""
        mask = self._mask(points)
        if blur:
            mask = mask.filter(ImageFilter.GaussianBlur(blur * SUPERSAMPLING))
        if inside is not None:
            mask = ImageChops.multiply(mask, self._mask(inside))
        if opacity < 1:
            mask = mask.point([round(level * opacity) for level in range(256)])
        ys = [y for _, y in points]
        self.image.paste(self._gradient(top, bottom or top, min(ys), max(ys)), mask=mask)

    def shadow(
        self, points: Sequence[Point], dx: float, dy: float, blur: float, opacity: float = 0.25
    ) -> None:
        self.shape([(x + dx, y + dy) for x, y in points], "#3a2418", opacity=opacity, blur=blur)

    def line(self, points: Sequence[Point], stroke: str, width: float) -> None:
        """A round-capped smooth stroke."""
        draw = ImageDraw.Draw(self.image)
        scaled = [(x * SUPERSAMPLING, y * SUPERSAMPLING) for x, y in smooth(points, closed=False)]
        radius = width * SUPERSAMPLING / 2
        draw.line(scaled, fill=colour(stroke), width=round(radius * 2))
        for x, y in scaled:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour(stroke))

    def finish(self) -> Image.Image:
        return self.image.reduce(SUPERSAMPLING)


def ellipse(x: float, y: float, rx: float, ry: float) -> list[Point]:
    turn = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    return [(x + rx * float(np.cos(a)), y + ry * float(np.sin(a))) for a in turn]


def box(x0: float, y0: float, x1: float, y1: float, radius: float = 0.0) -> list[Point]:
    """A rectangle with round corners."""
    corners = ((x1, y1, 0.0), (x0, y1, 0.5), (x0, y0, 1.0), (x1, y0, 1.5))
    outline: list[Point] = []
    for x, y, start in corners:
        cx = x - radius if x == x1 else x + radius
        cy = y - radius if y == y1 else y + radius
        for a in np.linspace(start * np.pi, (start + 0.5) * np.pi, 12):
            outline.append((cx + radius * float(np.cos(a)), cy + radius * float(np.sin(a))))
    return outline


def mirror(points: Sequence[Point], axis: float) -> list[Point]:
    return [(2 * axis - x, y) for x, y in reversed(points)]


def draw_person() -> Image.Image:
    """A presenter at her desk, hands free to take the product; 720×1280, RGB."""
    canvas = Canvas(720, 1280, "#f7e7d6", "#eccdb2")
    _draw_room(canvas)
    _draw_body(canvas)
    _draw_head(canvas)
    _draw_desk(canvas)
    for side in ("left", "right"):
        _draw_arm(canvas, side)
    return canvas.finish()


def _draw_room(canvas: Canvas) -> None:
    arch = [*ellipse(360, 470, 285, 300)[48:], (645, 1100), (75, 1100)]
    canvas.shape(arch, "#fdf6ec", "#f8e6d3")
    canvas.shape(ellipse(250, 300, 230, 200), "#fffdf6", opacity=0.7, blur=60)
    # a shelf with books and a plant
    canvas.shadow(box(-10, 372, 150, 388), 0, 14, 9)
    canvas.shape(box(-10, 370, 152, 386, 4), "#b98255", "#9d6a41")
    for x, width, height, tint in ((8, 22, 92, "#2f7f86"), (34, 18, 106, "#e3a857"), (56, 24, 84, "#d4694f")):
        canvas.shape(box(x, 370 - height, x + width, 370, 3), tint)
        canvas.shape(box(x, 370 - height + 14, x + width, 370 - height + 20), "#fdf6ec", opacity=0.7)
    for lean in (-34, -16, 2, 20, 38):
        leaf = [(116, 322), (116 + lean * 0.4 - 9, 285), (116 + lean, 244), (116 + lean * 0.5 + 8, 286)]
        canvas.shape(smooth(leaf), "#6fa76b", "#3f7a4d")
    canvas.shape([(94, 320), (140, 320), (134, 370), (100, 370)], "#f3efe8", "#d8cfc3")
    # a lamp
    canvas.line([(600, -10), (600, 120)], "#8a6a50", 4)
    canvas.shape(ellipse(600, 235, 150, 120), "#fff3cf", opacity=0.75, blur=38)
    canvas.shape([(572, 120), (628, 120), (668, 196), (532, 196)], "#e9b765", "#d99a45")
    canvas.shape(ellipse(600, 196, 68, 9), "#fff6dd")


def _draw_body(canvas: Canvas) -> None:
    cardigan: list[Point] = [
        (360, 622), (430, 640), (500, 664), (560, 712), (585, 800), (572, 960), (560, 1130),
        (360, 1150), (160, 1130), (148, 960), (135, 800), (160, 712), (220, 664), (290, 640),
    ]  # fmt: skip
    outline = smooth(cardigan)
    canvas.shadow(outline, 10, 16, 22, 0.22)
    canvas.shape(outline, "#3a8f95", "#256a72")
    shirt: list[Point] = [(302, 636), (418, 636), (440, 760), (428, 1150), (292, 1150), (280, 760)]
    canvas.shape(smooth(shirt), "#ffffff", "#ece6df")
    for sign in (-1, 1):
        # lapels
        canvas.line([(360 + sign * 60, 634), (360 + sign * 80, 760), (360 + sign * 72, 1150)], "#1f5d65", 9)
    for y in (830, 910, 990):
        canvas.shape(ellipse(277, y, 6.5, 6.5), "#f2d9a8", "#c99a52")


def _draw_head(canvas: Canvas) -> None:
    hair_back: list[Point] = [
        (360, 268), (446, 290), (494, 372), (500, 470), (496, 560), (440, 598), (360, 590),
        (280, 598), (224, 560), (220, 470), (226, 372), (274, 290),
    ]  # fmt: skip
    canvas.shadow(smooth(hair_back), 8, 14, 16)
    canvas.shape(smooth(hair_back), "#6b3f26", "#4a2817")
    neck: list[Point] = [(318, 520), (402, 520), (404, 604), (426, 640), (360, 690), (294, 640), (316, 604)]
    canvas.shape(smooth(neck), "#eab594", "#efc0a0")
    face: list[Point] = [
        (360, 318), (428, 340), (456, 410), (452, 480), (424, 545), (384, 584), (360, 590),
        (336, 584), (296, 545), (268, 480), (264, 410), (292, 340),
    ]  # fmt: skip
    outline = smooth(face)
    canvas.shape([(x, y + 20) for x, y in outline], "#c98d6c", opacity=0.6, blur=9, inside=smooth(neck))
    canvas.shape(outline, "#f8d3b8", "#f1bf9f")
    for sign in (-1, 1):
        canvas.shape(ellipse(360 + sign * 62, 500, 27, 19), "#ef8f7d", opacity=0.42, blur=9)
        _draw_eye(canvas, 360 + sign * 45, 442, sign)
        canvas.shape(ellipse(360 + sign * 97, 520, 6, 9), "#f4cf7d", "#c98f37")
    canvas.line([(356, 455), (350, 492), (359, 503), (371, 500)], "#d99c7c", 4)
    mouth: list[Point] = [
        (322, 528),
        (342, 533),
        (360, 535),
        (378, 533),
        (398, 528),
        (384, 552),
        (360, 561),
        (336, 552),
    ]
    canvas.shape(smooth(mouth), "#b8434a", "#c9555a")
    teeth: list[Point] = [(330, 532), (360, 537), (390, 532), (380, 543), (360, 547), (340, 543)]
    canvas.shape(smooth(teeth), "#ffffff", inside=smooth(mouth))
    fringe: list[Point] = [
        (360, 262), (440, 284), (484, 356), (478, 452), (456, 400), (428, 362), (392, 346),
        (352, 372), (302, 392), (266, 414), (240, 462), (236, 356), (280, 284),
    ]  # fmt: skip
    canvas.shape(smooth(fringe), "#8a5535", "#5d3520")
    for strand in (
        [(382, 284), (330, 326), (278, 384)],
        [(400, 290), (440, 326), (466, 392)],
        [(352, 276), (300, 308), (256, 372)],
    ):
        canvas.line([(float(x), float(y)) for x, y in strand], "#a56a45", 4)


def _draw_eye(canvas: Canvas, x: float, y: float, sign: int) -> None:
    white = smooth([(x - 24, y + 2), (x, y - 15), (x + 24, y + 2), (x, y + 14)])
    canvas.shape(white, "#ffffff", "#f3ece6")
    canvas.shape(ellipse(x, y - 1, 13, 13), "#6d4a2b", "#8a6036", inside=white)
    canvas.shape(ellipse(x, y - 1, 7, 7), "#20140d", inside=white)
    canvas.shape(ellipse(x + 5, y - 6, 4, 4), "#ffffff")
    canvas.line(
        [(x - 25, y + 2), (x - 13, y - 13), (x + 2, y - 17), (x + 16, y - 11), (x + 25, y + 1)], "#3b2115", 5
    )
    canvas.line([(x - 27, y - 31 - 2 * sign), (x, y - 39 - sign), (x + 27, y - 31 + 2 * sign)], "#5d3520", 7)


def _draw_desk(canvas: Canvas) -> None:
    top: list[Point] = [(-20, 1076), (740, 1076), (740, 1300), (-20, 1300)]
    canvas.shadow(top, 0, -12, 14, 0.3)
    canvas.shape(top, "#d9a672", "#a9713f")
    for x, y, length in (
        (40, 1110, 210),
        (330, 1136, 300),
        (90, 1180, 260),
        (460, 1212, 200),
        (180, 1250, 340),
    ):
        canvas.line([(x, y), (x + length / 2, y + 5), (x + length, y)], "#bb8350", 3)
    canvas.shape(box(-20, 1072, 740, 1080), "#f0cd9f", opacity=0.9)
    # a cup, for company
    canvas.shadow(ellipse(90, 1150, 52, 14), 8, 10, 8, 0.4)
    canvas.line([(128, 1084), (160, 1090), (156, 1122), (126, 1130)], "#e8604c", 11)
    canvas.shape(
        [*smooth([(40, 1060), (46, 1130), (66, 1156), (114, 1156), (134, 1130), (140, 1060)], False)],
        "#f07f68",
        "#cf5240",
    )
    canvas.shape(ellipse(90, 1060, 50, 13), "#f8b3a0")
    canvas.shape(ellipse(90, 1062, 41, 9), "#6b3a22", "#8a5330")


def _draw_arm(canvas: Canvas, side: Literal["left", "right"]) -> None:
    """One forearm on the desk and its hand; drawn once and mirrored."""

    def place(points: Sequence[Point]) -> list[Point]:
        return list(points) if side == "left" else mirror(points, 360)

    arm: list[Point] = [
        (166, 712), (206, 740), (214, 850), (222, 950), (266, 1030), (300, 1074), (268, 1122),
        (190, 1112), (128, 1040), (110, 930), (122, 800),
    ]  # fmt: skip
    sleeve = smooth(arm)
    canvas.shadow(place(sleeve), 0, 12, 12, 0.35)
    canvas.shape(place(sleeve), "#3a8f95", "#286f77")
    hand = smooth([(276, 1062), (312, 1064), (338, 1084), (346, 1106), (322, 1122), (284, 1124), (258, 1108)])
    canvas.shadow(place(hand), 0, 10, 7, 0.3)
    canvas.shape(place(hand), "#f6cdb0", "#e9b391")
    for start, end in (((312, 1086), (348, 1098)), ((306, 1098), (342, 1110)), ((300, 1109), (330, 1120))):
        canvas.line(place([start, ((start[0] + end[0]) / 2, start[1] + 3), end]), "#d99c7c", 3)
    canvas.line(place([(284, 1068), (308, 1056), (330, 1062)]), "#f6cdb0", 17)
    cuff = smooth([(256, 1046), (276, 1050), (296, 1072), (272, 1122), (250, 1116), (262, 1080)])
    canvas.shape(place(cuff), "#256a72", "#1f5a62")


def draw_product() -> Image.Image:
    """An amber pump bottle with a cream label on white; 768×768, RGB."""
    canvas = Canvas(768, 768, "#ffffff", "#f6f3ef")
    canvas.shape(ellipse(400, 700, 190, 22), "#5a4030", opacity=0.35, blur=16)
    # the pump
    canvas.shape(box(372, 96, 396, 190, 4), "#4c4743", "#2c2826")
    canvas.shape(
        smooth([(300, 78), (384, 66), (428, 74), (428, 100), (384, 108), (322, 104), (308, 122), (288, 120)]),
        "#5a544f",
        "#2c2826",
    )
    canvas.shape(box(330, 176, 438, 236, 10), "#4c4743", "#26221f")
    for x in range(342, 432, 12):
        canvas.line([(x, 184), (x, 228)], "#6d6660", 2.5)
    body: list[Point] = [
        *smooth([(346, 232), (344, 262), (300, 296), (262, 340), (254, 400)], False),
        *smooth([(254, 640), (262, 686), (300, 704), (468, 704), (506, 686), (514, 640)], False),
        *smooth([(514, 400), (506, 340), (468, 296), (424, 262), (422, 232)], False),
    ]
    canvas.shape(body, "#c9772c", "#7d3d12")
    canvas.shape(box(272, 330, 300, 690, 14), "#f3b565", opacity=0.75, blur=7, inside=body)
    canvas.shape(box(478, 300, 514, 700, 14), "#5a270a", opacity=0.65, blur=12, inside=body)
    canvas.shape(box(440, 340, 450, 390, 5), "#ffe0ae", opacity=0.8, blur=3, inside=body)
    label = box(254, 410, 514, 636)
    canvas.shape(label, "#fbf3e2", "#eee0c6", inside=body)
    canvas.shape(box(480, 410, 514, 636), "#9d8259", opacity=0.4, blur=12, inside=label)
    for y in (426, 616):
        canvas.shape(box(254, y, 514, y + 4), "#b88a45", inside=body)
    # a sprig on the label
    canvas.line([(384, 560), (382, 510), (386, 452)], "#4e7f57", 5)
    for index, y in enumerate((536, 510, 484)):
        reach = 46 - 7 * index
        for sign in (-1, 1):
            leaf = [
                (384, y),
                (384 + sign * reach * 0.5, y - 26),
                (384 + sign * reach, y - 30),
                (384 + sign * reach * 0.6, y - 6),
            ]
            canvas.shape(smooth([(float(a), float(b)) for a, b in leaf]), "#7fb07c", "#4e7f57")
    canvas.shape(smooth([(384, 470), (372, 452), (384, 428), (396, 452)]), "#8cbb86", "#4e7f57")
    for y, half in ((574, 74), (594, 46)):
        canvas.shape(box(384 - half, y, 384 + half, y + 8, 4), "#5b4630")
    return canvas.finish()
