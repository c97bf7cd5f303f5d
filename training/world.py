"""The people, products, rooms and actions of the procedural world, as numbers. `drawing` makes the pixels.

Lengths are in frame widths: x runs 0..1 from left to right, y downwards with 0.8 in the middle of the frame.
"Right" and "left" are the presenter's own, so the right hand is on the left of the picture.
"""

from __future__ import annotations

import colorsys
import zlib
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from contract.video import CLIP_FRAMES

Color = tuple[int, int, int]
Split = Literal["train", "heldout"]
Action = Literal["lift_right", "lift_left", "rotate", "point_right", "point_left", "show_bottom", "hold"]
Shape = Literal["box", "bottle", "can", "jar", "tube", "cup", "bag"]
Pattern = Literal["band", "stripes", "dots", "disc", "checker", "diagonal"]

ACTIONS: tuple[Action, ...] = (
    "lift_right",
    "lift_left",
    "rotate",
    "point_right",
    "point_left",
    "show_bottom",
    "hold",
)
SHAPES: tuple[Shape, ...] = ("box", "bottle", "can", "jar", "tube", "cup", "bag")
PATTERNS: tuple[Pattern, ...] = ("band", "stripes", "dots", "disc", "checker", "diagonal")
READY_HEIGHT = 1.12
"""Where the product's centre is between actions."""

# Hue, saturation, value: names that a prompt can use.
COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.99, 0.80, 0.83), "orange": (0.07, 0.85, 0.95), "yellow": (0.14, 0.78, 0.96),
    "green": (0.36, 0.65, 0.62), "teal": (0.49, 0.72, 0.66), "blue": (0.60, 0.72, 0.82),
    "purple": (0.76, 0.55, 0.68), "pink": (0.93, 0.45, 0.95), "white": (0.10, 0.04, 0.96),
    "black": (0.60, 0.15, 0.20), "brown": (0.07, 0.60, 0.50),
}  # fmt: skip
SKINS: tuple[Color, ...] = (
    (250, 218, 192), (240, 198, 164), (222, 174, 136), (190, 138, 100), (146, 98, 68), (104, 68, 48)
)  # fmt: skip
HAIRS: dict[str, Color] = {
    "black": (38, 32, 34), "brown": (96, 62, 40), "blond": (222, 184, 110),
    "red": (172, 80, 44), "grey": (158, 156, 158)
}  # fmt: skip
HAIR_STYLES = ("short", "long", "bun", "curly", "bald")
ROOMS = ("window", "shelf", "picture", "plant", "lamp", "plain")


@dataclass(frozen=True)
class Person:
    """A presenter. `shirt_name` and `hair_name` are the words a prompt uses for the colours."""

    skin: Color
    hair_style: str
    hair: Color
    hair_name: str
    shirt: Color
    shirt_name: str
    collar: str
    glasses: bool
    beard: bool
    head_width: float
    head_height: float
    shoulders: float


@dataclass(frozen=True)
class Product:
    """A thing to present. Its front has a pattern, its back only a label. Sizes are in frame widths."""

    shape: Shape
    pattern: Pattern
    color: Color
    color_name: str
    accent: Color
    cap: Color
    width: float
    height: float


@dataclass(frozen=True)
class Room:
    """The background and the camera. `zoom` is about 1, `shift` is in frame widths."""

    kind: str
    wall: Color
    wall_name: str
    trim: Color
    table: Color
    mirror: bool
    zoom: float
    shift: tuple[float, float]


@dataclass(frozen=True)
class Hand:
    """A hand. `x` and `y` are the palm's centre; `grips` closes the fingers around the product.

    `points` says how far the index finger is stretched out, 0..1.
    """

    x: float
    y: float
    grips: bool = False
    points: float = 0.0


@dataclass(frozen=True)
class Held:
    """The product in the hands. `x` and `y` are its centre.

    `spin` turns it about its upright axis, in radians. `tilt` runs from 0 to 1, where the bottom shows.
    """

    x: float
    y: float
    spin: float = 0.0
    tilt: float = 0.0


@dataclass(frozen=True)
class Pose:
    """Everything that changes from frame to frame."""

    head: tuple[float, float]
    mouth: float
    eyes: float
    right: Hand
    left: Hand
    held: Held | None


@dataclass(frozen=True)
class Cast:
    """Who presents what, where."""

    person: Person
    product: Product
    room: Room


def make_cast(seed: int, split: Split = "train") -> Cast:
    """A presenter, a product and a room. The two splits share no person's look and no product's look."""
    rng = np.random.default_rng([seed, 1 if split == "train" else 2])
    return Cast(make_person(rng, split), make_product(rng, split), make_room(rng))


def make_person(rng: np.random.Generator, split: Split) -> Person:
    while True:
        skin = SKINS[rng.integers(len(SKINS))]
        style = HAIR_STYLES[rng.integers(len(HAIR_STYLES))]
        hair_name = str(rng.choice(list(HAIRS)))
        shirt_name = str(rng.choice(list(COLORS)))
        if _is_heldout(f"{skin} {style} {hair_name} {shirt_name}") == (split == "heldout"):
            break
    return Person(
        skin=_jitter(skin, rng, 8),
        hair_style=style,
        hair=_jitter(HAIRS[hair_name], rng, 8),
        hair_name=hair_name,
        shirt=_color(shirt_name, rng),
        shirt_name=shirt_name,
        collar=str(rng.choice(["crew", "v", "shirt"])),
        glasses=bool(rng.random() < 0.25),
        beard=bool(style in ("short", "bald") and rng.random() < 0.35),
        head_width=float(rng.uniform(0.175, 0.2)),
        head_height=float(rng.uniform(0.215, 0.24)),
        shoulders=float(rng.uniform(0.25, 0.29)),
    )


def make_product(rng: np.random.Generator, split: Split) -> Product:
    while True:
        shape = SHAPES[rng.integers(len(SHAPES))]
        pattern = PATTERNS[rng.integers(len(PATTERNS))]
        color_name = str(rng.choice(list(COLORS)))
        if _is_heldout(f"{shape} {pattern} {color_name}") == (split == "heldout"):
            break
    color = _color(color_name, rng)
    accent_name = str(rng.choice([name for name in COLORS if _contrast(_color_of(name), color) > 130]))
    width, height = {
        "box": (0.30, 0.38), "bottle": (0.22, 0.46), "can": (0.25, 0.36), "jar": (0.32, 0.30),
        "tube": (0.19, 0.44), "cup": (0.28, 0.32), "bag": (0.33, 0.36),
    }[shape]  # fmt: skip
    size = float(rng.uniform(1.1, 1.25))
    return Product(
        shape=shape,
        pattern=pattern,
        color=color,
        color_name=color_name,
        accent=_color(accent_name, rng),
        cap=_shade(_color_of(str(rng.choice(["white", "black", accent_name]))), 0.92),
        width=width * size,
        height=height * size,
    )


def make_room(rng: np.random.Generator) -> Room:
    wall_name = str(rng.choice(["blue", "green", "pink", "yellow", "purple", "white", "teal", "orange"]))
    h, s, v = COLORS[wall_name]
    wall = _from_hsv(h, s * 0.32, 0.80 + 0.14 * v + float(rng.uniform(-0.05, 0.03)))
    table = [(172, 124, 84), (120, 82, 58), (214, 190, 158), (232, 232, 228), (92, 96, 108)][rng.integers(5)]
    return Room(
        kind=str(rng.choice(ROOMS)),
        wall=wall,
        wall_name=wall_name,
        trim=_color(str(rng.choice(list(COLORS))), rng),
        table=_jitter(table, rng, 8),
        mirror=bool(rng.random() < 0.5),
        zoom=float(rng.uniform(0.96, 1.06)),
        shift=(float(rng.uniform(-0.03, 0.03)), float(rng.uniform(-0.02, 0.03))),
    )


REST = (Hand(0.20, 1.33), Hand(0.80, 1.33))


def rest_pose() -> Pose:
    """Hands on the table, mouth closed, nothing held: how the presenter stands in the reference photo."""
    return Pose(head=(0.0, 0.0), mouth=0.0, eyes=1.0, right=REST[0], left=REST[1], held=None)


def pose_at(action: Action, frame: int, mouth: float, product: Product) -> Pose:
    """The pose in frame 0..79 of a clip.

    Every action starts and ends in the same ready pose (product between both hands before the chest), so
    that any clip can follow any other.
    """
    raised = _smooth((frame - 2) / 16) * (1 - _smooth((frame - 60) / 16))
    turn = 2 * np.pi * frame / CLIP_FRAMES
    x, y, spin, tilt = 0.5, READY_HEIGHT + 0.006 * float(np.sin(2 * turn)), 0.0, 0.0
    right_free = left_free = 0.0  # 0 = hand at the product, 1 = at `free`
    free_right, free_left = REST
    points_right = points_left = 0.0
    tap = 0.035 * float(np.sin(np.pi * (frame - 18) / 7) ** 2) if 18 <= frame < 60 else 0.0
    if action == "lift_right":
        x, y, left_free = x - 0.24 * raised, y - 0.24 * raised, raised
    elif action == "lift_left":
        x, y, right_free = x + 0.24 * raised, y - 0.24 * raised, raised
    elif action == "rotate":
        y, spin = y - 0.08 * raised, 2 * np.pi * _smooth((frame - 14) / 50)
    elif action == "point_left":
        x, y, left_free, points_left = x - 0.12 * raised, y - 0.1 * raised, raised, raised
        free_left = Hand(x + product.width / 2 + 0.19 - tap, y - 0.02)
    elif action == "point_right":
        x, y, right_free, points_right = x + 0.12 * raised, y - 0.1 * raised, raised, raised
        free_right = Hand(x - product.width / 2 - 0.19 + tap, y - 0.02)
    elif action == "show_bottom":
        y, tilt = y - 0.14 * raised, _smooth((frame - 12) / 12) * (1 - _smooth((frame - 54) / 14))
    elif action == "hold":
        y -= 0.04 * raised
    half = product.width / 2 * 0.94
    sway = 0.012 * float(np.sin(turn))
    return Pose(
        head=(sway, 0.006 * float(np.sin(2 * turn)) + 0.008 * mouth),
        mouth=mouth,
        eyes=0.1 if frame in (22, 23, 61, 62) else 1.0,
        right=_between(Hand(x - half, y + 0.04, grips=True), free_right, right_free, points_right),
        left=_between(Hand(x + half, y + 0.04, grips=True), free_left, left_free, points_left),
        held=Held(x, y, float(spin), tilt),
    )


def describe(cast: Cast, action: Action, rng: np.random.Generator, first: bool) -> str:
    """A prompt for one clip. The first prompt of a video also describes the presenter and the room."""
    person, product = cast.person, cast.product
    thing = f"the {product.color_name} {product.shape}"
    said = str(rng.choice(ACTION_WORDS[action])).format(thing=thing)
    if not first and rng.random() < 0.5:
        return said
    hair = "a bald head" if person.hair_style == "bald" else f"{person.hair_style} {person.hair_name} hair"
    if person.hair_style == "bun":
        hair = f"{person.hair_name} hair in a bun"
    wall = cast.room.wall_name
    who = f"A presenter with {hair} in a {person.shirt_name} shirt"
    return f"{who} stands at a table before a {wall} wall. {said}"


ACTION_WORDS: dict[Action, tuple[str, ...]] = {
    "lift_right": (
        "The person lifts {thing} with the right hand.",
        "They raise {thing} in their right hand and show it.",
    ),
    "lift_left": (
        "The person lifts {thing} with the left hand.",
        "They raise {thing} in their left hand and show it.",
    ),
    "rotate": (
        "The person rotates {thing} with both hands.",
        "They slowly turn {thing} around to show its back.",
    ),
    "point_right": (
        "The person points at {thing} with the right hand.",
        "They hold {thing} and point at it with a right finger.",
    ),
    "point_left": (
        "The person points at {thing} with the left hand.",
        "They hold {thing} and point at it with a left finger.",
    ),
    "show_bottom": ("The person shows the bottom of {thing}.", "They tilt {thing} to reveal its bottom."),
    "hold": (
        "The person holds {thing} still before the chest.",
        "They hold {thing} steadily with both hands.",
    ),
}


def _between(grip: Hand, free: Hand, amount: float, points: float) -> Hand:
    return replace(
        grip,
        x=grip.x + (free.x - grip.x) * amount,
        y=grip.y + (free.y - grip.y) * amount,
        grips=amount < 0.12,
        points=points,
    )


def _smooth(u: float) -> float:
    u = min(1.0, max(0.0, u))
    return u * u * (3 - 2 * u)


def _is_heldout(look: str) -> bool:
    return zlib.crc32(look.encode()) % 6 == 0


def _from_hsv(h: float, s: float, v: float) -> Color:
    r, g, b = colorsys.hsv_to_rgb(h % 1.0, min(1.0, max(0.0, s)), min(1.0, max(0.0, v)))
    return round(255 * r), round(255 * g), round(255 * b)


def _color_of(name: str) -> Color:
    return _from_hsv(*COLORS[name])


def _color(name: str, rng: np.random.Generator) -> Color:
    h, s, v = COLORS[name]
    return _from_hsv(h + rng.uniform(-0.012, 0.012), s * rng.uniform(0.9, 1.1), v * rng.uniform(0.94, 1.04))


def _jitter(color: Color, rng: np.random.Generator, amount: int) -> Color:
    r, g, b = (
        int(np.clip(c + d, 0, 255))
        for c, d in zip(color, rng.integers(-amount, amount + 1, size=3), strict=True)
    )
    return r, g, b


def _shade(color: Color, factor: float) -> Color:
    r, g, b = (int(np.clip(c * factor, 0, 255)) for c in color)
    return r, g, b


def _contrast(a: Color, b: Color) -> float:
    return float(np.abs(np.subtract(a, b)).sum())
