"""Draws the procedural world: RGB frames and HOI structure frames.

The layers are, from back to front: room, torso, head, table, arms and palms, product, fingers. Palms are
behind the product and fingers in front of it, as in a real grip. Frames are drawn larger and averaged, which
smooths edges.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from model.media.images import PRODUCT_MARGIN

from .world import READY_HEIGHT, Cast, Color, Hand, Held, Person, Pose, Product, Room

Point = tuple[float, float]
Box = tuple[float, float, float, float]

# HOI structure: one grey per body part instead of its looks, one colour for whatever is held.
MESH_HEAD, MESH_TORSO, MESH_ARM, MESH_HAND = (
    (176, 186, 200),
    (112, 124, 142),
    (142, 154, 172),
    (214, 222, 232),
)
MESH_PRODUCT, MESH_PRODUCT_BOTTOM = (236, 150, 60), (190, 104, 36)


class Camera:
    """World coordinates (frame widths) → canvas pixels of a frame of `width` × `height`."""

    def __init__(self, room: Room, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.oversampling = max(2, math.ceil(240 / width))
        self.canvas = (width * self.oversampling, height * self.oversampling)
        self.scale = self.canvas[0] * room.zoom
        self._origin = (
            self.canvas[0] * (0.5 + room.shift[0]) - 0.5 * self.scale,
            self.canvas[1] * 0.5 + self.canvas[0] * room.shift[1] - 0.8 * self.scale,
        )

    def point(self, x: float, y: float) -> Point:
        return self._origin[0] + x * self.scale, self._origin[1] + y * self.scale

    def box(self, x: float, y: float, half_width: float, half_height: float) -> Box:
        left, top = self.point(x - half_width, y - half_height)
        right, bottom = self.point(x + half_width, y + half_height)
        return left, top, right, bottom

    def frame_box(
        self, x: float, y: float, half_width: float, half_height: float
    ) -> tuple[int, int, int, int]:
        """A box x1, y1, x2, y2 in whole pixels of the finished frame, cut off at the frame's edges."""
        x1, y1, x2, y2 = (v / self.oversampling for v in self.box(x, y, half_width, half_height))
        return (
            min(max(math.floor(x1), 0), self.width),
            min(max(math.floor(y1), 0), self.height),
            min(max(math.ceil(x2), 0), self.width),
            min(max(math.ceil(y2), 0), self.height),
        )


@dataclass(frozen=True)
class Boxes:
    """Where the face, the hands and the product are in one frame, in pixels x1, y1, x2, y2."""

    face: tuple[int, int, int, int]
    right_hand: tuple[int, int, int, int]
    left_hand: tuple[int, int, int, int]
    product: tuple[int, int, int, int] | None


HAND_RADIUS = 0.068


class Painter:
    """Draws one cast at one frame size. Layers that never move are drawn once."""

    def __init__(self, cast: Cast, width: int, height: int) -> None:
        self.cast = cast
        self.camera = Camera(cast.room, width, height)
        self._room = _paint_room(cast.room, self.camera)
        self._black = Image.new("RGB", self.camera.canvas)

    def frame(self, pose: Pose) -> np.ndarray:
        """RGB, (H, W, 3) uint8."""
        return self._paint(self._room.copy(), pose, structure=False)

    def structure(self, pose: Pose) -> np.ndarray:
        """The HOI structure frame, (H, W, 3) uint8.

        Body parts are grey, the product has one colour, everything else is black.
        """
        return self._paint(self._black.copy(), pose, structure=True)

    def boxes(self, pose: Pose) -> Boxes:
        person, camera = self.cast.person, self.camera
        head_x, head_y = _head(pose)
        held = pose.held
        product = None
        if held is not None:
            half_width, half_height = product_extent(self.cast.product, held)
            product = camera.frame_box(held.x, held.y, half_width, half_height)
        return Boxes(
            face=camera.frame_box(head_x, head_y + 0.02, person.head_width, person.head_height * 0.95),
            right_hand=camera.frame_box(pose.right.x, pose.right.y, HAND_RADIUS * 1.25, HAND_RADIUS * 1.25),
            left_hand=camera.frame_box(pose.left.x, pose.left.y, HAND_RADIUS * 1.25, HAND_RADIUS * 1.25),
            product=product,
        )

    def _paint(self, image: Image.Image, pose: Pose, structure: bool) -> np.ndarray:
        draw = ImageDraw.Draw(image)
        person, room, camera = self.cast.person, self.cast.room, self.camera
        _paint_torso(draw, person, camera, structure)
        _paint_head(draw, person, pose, camera, structure)
        if not structure:
            _paint_table(draw, room, camera)
        for hand, side in ((pose.right, -1), (pose.left, 1)):
            _paint_arm(draw, person, hand, side, camera, structure)
        if pose.held is not None:
            _paint_product(image, self.cast.product, pose.held, camera, structure)
        for hand, side in ((pose.right, -1), (pose.left, 1)):
            _paint_fingers(draw, person, hand, side, camera, structure)
        return np.asarray(image.reduce(camera.oversampling))


def product_image(product: Product, width: int, height: int) -> Image.Image:
    """The product reference: the product's front on black.

    Once the pipeline has placed it like any photo, the product is where it is between actions, and as large.
    A network learns to copy a look in far fewer steps than to move and shrink it as well.
    """
    texture = _texture(product, "front", False, 4 * max(width, height))
    ratio = PRODUCT_MARGIN * product.width * width / texture.width
    texture = texture.resize(
        (round(texture.width * ratio), round(texture.height * ratio)), Image.Resampling.LANCZOS
    )
    image = Image.new("RGB", (width, height))
    below_centre = PRODUCT_MARGIN * (READY_HEIGHT * width - height / 2)
    middle = height / 2 + min(below_centre, (height - texture.height) / 2)
    image.paste(texture, ((width - texture.width) // 2, round(middle - texture.height / 2)), texture)
    return image


def product_extent(product: Product, held: Held) -> tuple[float, float]:
    """Half width and half height of the product as drawn, in frame widths."""
    squash = 0.4 + 0.6 * abs(math.cos(held.spin))
    return product.width / 2 * squash, product.height / 2 * (1 - 0.25 * held.tilt)


def _head(pose: Pose) -> Point:
    return 0.5 + pose.head[0], 0.42 + pose.head[1]


def _shade(color: Color, factor: float) -> Color:
    r, g, b = (min(255, int(c * factor)) for c in color)
    return r, g, b


def _limb(draw: ImageDraw.ImageDraw, a: Point, b: Point, width: float, color: Color) -> None:
    draw.line((a, b), fill=color, width=max(1, round(width)))
    for x, y in (a, b):
        draw.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=color)


def _paint_room(room: Room, camera: Camera) -> Image.Image:
    width, height = camera.canvas
    shade = np.linspace(1.06, 0.9, height)[:, None, None] * np.linspace(1.02, 0.98, width)[None, :, None]
    wall = Image.fromarray(np.clip(np.array(room.wall) * shade, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(wall)

    def box(x: float, y: float, half_width: float, half_height: float) -> Box:
        return camera.box(1 - x if room.mirror else x, y, half_width, half_height)

    light, dark = (250, 250, 246), (104, 84, 70)
    if room.kind == "window":
        draw.rectangle(box(0.14, 0.36, 0.17, 0.27), fill=light)
        draw.rectangle(box(0.14, 0.36, 0.145, 0.245), fill=(176, 214, 240))
        draw.rectangle(box(0.14, 0.36, 0.145, 0.012), fill=light)
        draw.rectangle(box(0.14, 0.36, 0.012, 0.245), fill=light)
    elif room.kind == "shelf":
        draw.rectangle(box(0.14, 0.55, 0.16, 0.016), fill=dark)
        for i, (shift, tall) in enumerate([(-0.12, 0.09), (-0.065, 0.12), (-0.01, 0.08), (0.05, 0.11)]):
            color = _shade(room.trim, (0.7, 1.0, 0.85, 1.15)[i])
            draw.rectangle(box(0.14 + shift, 0.534 - tall, 0.022, tall), fill=color)
    elif room.kind == "picture":
        draw.rectangle(box(0.14, 0.3, 0.13, 0.16), fill=dark)
        draw.rectangle(box(0.14, 0.3, 0.11, 0.14), fill=light)
        draw.ellipse(box(0.14, 0.32, 0.06, 0.06), fill=room.trim)
    elif room.kind == "plant":
        for x, y, r in ((0.08, 0.86, 0.08), (0.2, 0.8, 0.09), (0.13, 0.68, 0.1)):
            draw.ellipse(box(x, y, r * 0.8, r), fill=_shade((72, 140, 84), 0.9 + y * 0.15))
        draw.rectangle(box(0.14, 1.12, 0.1, 0.2), fill=room.trim)
    elif room.kind == "lamp":
        draw.rectangle(box(0.12, 0.9, 0.012, 0.5), fill=dark)
        draw.ellipse(box(0.12, 0.36, 0.13, 0.12), fill=(255, 240, 196))
    return wall


def _paint_table(draw: ImageDraw.ImageDraw, room: Room, camera: Camera) -> None:
    _, top = camera.point(0, 1.36)
    _, edge = camera.point(0, 1.39)
    below = top + 2 * camera.canvas[1]  # wide frames may end above the table
    draw.rectangle((0, top, camera.canvas[0], below), fill=room.table)
    draw.rectangle((0, top, camera.canvas[0], edge), fill=_shade(room.table, 1.12))


def _paint_torso(draw: ImageDraw.ImageDraw, person: Person, camera: Camera, structure: bool) -> None:
    shirt = MESH_TORSO if structure else person.shirt
    skin = MESH_HEAD if structure else _shade(person.skin, 0.9)
    wide = person.shoulders
    if person.hair_style == "long" and not structure:
        draw.rounded_rectangle(
            camera.box(0.5, 0.62, person.head_width * 1.12, 0.26), 0.12 * camera.scale, fill=person.hair
        )
    draw.rounded_rectangle(camera.box(0.5, 1.2, wide, 0.45), 0.12 * camera.scale, fill=shirt)
    draw.rectangle(camera.box(0.5, 0.7, 0.07, 0.08), fill=skin)
    if structure:
        return
    if person.collar == "v":
        draw.polygon([camera.point(0.5 + x, y) for x, y in ((-0.1, 0.74), (0.1, 0.74), (0, 0.9))], fill=skin)
    elif person.collar == "shirt":
        for side in (-1, 1):
            corners = ((0.0, 0.83), (0.11 * side, 0.74), (0.13 * side, 0.85))
            draw.polygon([camera.point(0.5 + x, y) for x, y in corners], fill=_shade(person.shirt, 0.8))
    else:
        draw.ellipse(camera.box(0.5, 0.75, 0.1, 0.05), fill=skin)


def _paint_head(
    draw: ImageDraw.ImageDraw, person: Person, pose: Pose, camera: Camera, structure: bool
) -> None:
    x, y = _head(pose)
    wide, tall = person.head_width, person.head_height
    skin = MESH_HEAD if structure else person.skin
    if person.hair_style == "bun" and not structure:
        draw.ellipse(camera.box(x, y - tall * 1.12, 0.08, 0.075), fill=person.hair)
    if person.hair_style in ("short", "long", "bun", "curly") and not structure:
        puff = 1.2 if person.hair_style == "curly" else 1.08
        draw.ellipse(camera.box(x, y - 0.045, wide * puff, tall * (puff - 0.02)), fill=person.hair)
    for side in (-1, 1):
        draw.ellipse(camera.box(x + side * wide * 0.97, y + 0.03, 0.028, 0.042), fill=_shade(skin, 0.93))
    draw.ellipse(camera.box(x, y + 0.012, wide, tall), fill=skin)
    if structure:
        return
    if person.hair_style != "bald":
        left, top, right, bottom = camera.box(x, y - 0.02, wide * 1.02, tall * 1.02)
        draw.chord((left, top, right, bottom), 205, 335, fill=person.hair)
    if person.beard:
        left, top, right, bottom = camera.box(x, y + 0.012, wide, tall)
        draw.chord((left, top, right, bottom), 28, 152, fill=_shade(person.hair, 1.0))
    ink = (46, 34, 32)
    for side in (-1, 1):
        eye = (x + side * wide * 0.42, y + 0.005)
        draw.ellipse(
            camera.box(*eye, 0.036, 0.032 * pose.eyes + 0.004),
            fill=(252, 252, 250) if pose.eyes > 0.5 else ink,
        )
        if pose.eyes > 0.5:
            draw.ellipse(camera.box(*eye, 0.018, 0.022), fill=ink)
        draw.rounded_rectangle(
            camera.box(eye[0], eye[1] - 0.062, 0.042, 0.009), 2, fill=_shade(person.hair, 0.8)
        )
        if person.glasses:
            stroke = max(1, round(0.011 * camera.scale))
            draw.ellipse(camera.box(*eye, 0.062, 0.056), outline=ink, width=stroke)
    draw.ellipse(camera.box(x, y + 0.065, 0.018, 0.022), fill=_shade(person.skin, 0.86))
    _paint_mouth(draw, x, y + tall * 0.58, pose.mouth, camera)


def _paint_mouth(draw: ImageDraw.ImageDraw, x: float, y: float, opening: float, camera: Camera) -> None:
    wide, tall = 0.078 - 0.018 * opening, 0.012 + 0.056 * opening
    draw.ellipse(camera.box(x, y, wide, tall + 0.012), fill=(190, 78, 84))
    if opening > 0.08:
        draw.ellipse(camera.box(x, y, wide - 0.012, tall - 0.004), fill=(74, 18, 26))
        if opening > 0.3:
            draw.ellipse(camera.box(x, y + tall * 0.55, wide * 0.55, tall * 0.32), fill=(214, 104, 108))
            draw.rectangle(camera.box(x, y - tall * 0.62, wide * 0.5, tall * 0.16), fill=(250, 248, 244))


def _paint_arm(
    draw: ImageDraw.ImageDraw, person: Person, hand: Hand, side: int, camera: Camera, structure: bool
) -> None:
    sleeve = MESH_ARM if structure else _shade(person.shirt, 0.86)
    skin = MESH_HAND if structure else person.skin
    shoulder = (0.5 + side * (person.shoulders - 0.06), 0.84)
    elbow = _elbow(shoulder, (hand.x, hand.y), side)
    wrist = (hand.x + (elbow[0] - hand.x) * 0.18, hand.y + (elbow[1] - hand.y) * 0.18)
    wide = 0.115 * camera.scale
    _limb(draw, camera.point(*shoulder), camera.point(*elbow), wide, sleeve)
    _limb(draw, camera.point(*elbow), camera.point(*wrist), wide * 0.85, sleeve)
    draw.ellipse(camera.box(hand.x, hand.y, HAND_RADIUS, HAND_RADIUS), fill=skin)


def _elbow(shoulder: Point, hand: Point, side: int) -> Point:
    """Two bones of 0.3; the elbow bends outwards and down."""
    dx, dy = hand[0] - shoulder[0], hand[1] - shoulder[1]
    reach = math.hypot(dx, dy)
    bend = math.sqrt(max(0.0, 0.3**2 - (reach / 2) ** 2))
    normal = (dy / max(reach, 1e-6), -dx / max(reach, 1e-6))
    if normal[0] * side < 0 and abs(normal[0]) > 0.05:
        normal = (-normal[0], -normal[1])
    return shoulder[0] + dx / 2 + normal[0] * bend * 0.8, shoulder[1] + dy / 2 + abs(normal[1]) * bend * 0.8


def _paint_fingers(
    draw: ImageDraw.ImageDraw, person: Person, hand: Hand, side: int, camera: Camera, structure: bool
) -> None:
    skin = MESH_HAND if structure else person.skin
    edge = _shade(skin, 0.8)
    inward = -side
    width = 0.036 * camera.scale
    if hand.grips:
        for i in range(3):
            y = hand.y - 0.045 + 0.042 * i
            a, b = camera.point(hand.x - inward * 0.01, y), camera.point(hand.x + inward * 0.062, y)
            _limb(draw, a, b, width * 1.16, edge)
            _limb(draw, a, b, width, skin)
    elif hand.points > 0.3:
        tip = hand.x + inward * (0.06 + 0.1 * hand.points)
        _limb(draw, camera.point(hand.x, hand.y - 0.02), camera.point(tip, hand.y - 0.02), width * 1.1, skin)
    else:
        for i in range(3):
            x = hand.x - 0.04 + 0.04 * i
            _limb(draw, camera.point(x, hand.y + 0.03), camera.point(x, hand.y + 0.065), width, skin)


def _paint_product(image: Image.Image, product: Product, held: Held, camera: Camera, structure: bool) -> None:
    side = "front" if math.cos(held.spin) >= 0 else "back"
    half_width, half_height = product_extent(product, held)
    texture = _texture(product, side, structure, image.width)
    wide, tall = max(2, round(2 * half_width * camera.scale)), max(2, round(2 * half_height * camera.scale))
    texture = texture.resize((wide, round(tall * (1 - 0.22 * held.tilt))), Image.Resampling.BILINEAR)
    left, top = camera.point(held.x - half_width, held.y - half_height)
    if held.tilt > 0.02:
        draw = ImageDraw.Draw(image)
        bottom = MESH_PRODUCT_BOTTOM if structure else _shade(product.color, 0.55)
        cap = 0.13 * held.tilt
        centre = held.y + half_height * (1 - 0.44 * held.tilt) - 0.01
        draw.ellipse(camera.box(held.x, centre, half_width * 0.94, cap), fill=bottom)
        if not structure:
            ring = camera.box(held.x, centre + cap * 0.25, half_width * 0.5, cap * 0.45)
            draw.ellipse(ring, fill=_shade(product.color, 0.8))
    image.paste(texture, (round(left), round(top)), texture)


@lru_cache(maxsize=64)
def _texture(product: Product, side: str, structure: bool, pixels_per_width: int) -> Image.Image:
    """One side of a product, RGBA, cut out along its outline."""
    zoom = 2
    width, height = (
        round(product.width * pixels_per_width * zoom),
        round(product.height * pixels_per_width * zoom),
    )
    mask, cap_mask = Image.new("L", (width, height)), Image.new("L", (width, height))
    _outline(product, ImageDraw.Draw(mask), ImageDraw.Draw(cap_mask), width, height)
    if structure:
        face = Image.new("RGB", (width, height), MESH_PRODUCT)
    else:
        face = Image.new("RGB", (width, height), product.color)
        _decorate(product, side, ImageDraw.Draw(face), width, height)
        face.paste(Image.new("RGB", (width, height), product.cap), mask=cap_mask)
        across = 1.0 - 0.22 * np.abs(np.linspace(-1, 1, width)) ** 2.5
        face = Image.fromarray((np.asarray(face) * across[None, :, None]).astype(np.uint8))
    mask.paste(255, mask=cap_mask)
    face.putalpha(mask)
    return face.resize((width // zoom, height // zoom), Image.Resampling.LANCZOS)


def _outline(
    product: Product, body: ImageDraw.ImageDraw, cap: ImageDraw.ImageDraw, width: int, height: int
) -> None:
    w, h = width - 1, height - 1
    corner = 0.12 * w
    if product.shape == "box":
        body.rounded_rectangle((0, 0, w, h), corner * 0.4, fill=255)
    elif product.shape == "bottle":
        body.rounded_rectangle((0, h * 0.3, w, h), corner * 1.6, fill=255)
        body.rectangle((w * 0.32, h * 0.14, w * 0.68, h * 0.4), fill=255)
        cap.rounded_rectangle((w * 0.26, 0, w * 0.74, h * 0.17), corner * 0.5, fill=255)
    elif product.shape == "can":
        body.rounded_rectangle((0, h * 0.04, w, h), corner * 1.2, fill=255)
        cap.ellipse((w * 0.06, 0, w * 0.94, h * 0.13), fill=255)
    elif product.shape == "jar":
        body.rounded_rectangle((0, h * 0.2, w, h), corner * 1.5, fill=255)
        cap.rounded_rectangle((w * 0.06, 0, w * 0.94, h * 0.24), corner * 0.5, fill=255)
    elif product.shape == "tube":
        body.polygon([(w * 0.0, 0), (w, 0), (w * 0.86, h * 0.84), (w * 0.14, h * 0.84)], fill=255)
        cap.rounded_rectangle((w * 0.2, h * 0.82, w * 0.8, h), corner * 0.6, fill=255)
    elif product.shape == "cup":
        body.polygon([(0, h * 0.06), (w, h * 0.06), (w * 0.8, h), (w * 0.2, h)], fill=255)
        cap.rounded_rectangle((0, 0, w, h * 0.12), corner * 0.4, fill=255)
    elif product.shape == "bag":
        body.polygon([(w * 0.08, h * 0.25), (w * 0.92, h * 0.25), (w, h), (0, h)], fill=255)
        stroke = max(2, round(0.07 * w))
        cap.arc((w * 0.28, 0, w * 0.72, h * 0.55), 180, 360, fill=255, width=stroke)


def _decorate(product: Product, side: str, draw: ImageDraw.ImageDraw, width: int, height: int) -> None:
    w, h, accent = width, height, product.accent
    if side == "back":
        draw.rectangle((w * 0.2, h * 0.42, w * 0.8, h * 0.82), fill=(244, 244, 240))
        for i in range(3):
            y = h * (0.5 + 0.1 * i)
            draw.rectangle((w * 0.28, y, w * 0.72, y + h * 0.035), fill=(120, 120, 124))
        return
    if product.pattern == "band":
        draw.rectangle((0, h * 0.45, w, h * 0.75), fill=accent)
    elif product.pattern == "stripes":
        for i in range(3):
            draw.rectangle((0, h * (0.38 + 0.2 * i), w, h * (0.47 + 0.2 * i)), fill=accent)
    elif product.pattern == "dots":
        for row in range(3):
            for column in range(2):
                x, y, r = w * (0.3 + 0.4 * column), h * (0.42 + 0.2 * row), w * 0.12
                draw.ellipse((x - r, y - r, x + r, y + r), fill=accent)
    elif product.pattern == "disc":
        r = w * 0.3
        draw.ellipse((w / 2 - r, h * 0.6 - r, w / 2 + r, h * 0.6 + r), fill=accent)
    elif product.pattern == "checker":
        for row in range(4):
            for column in range(3):
                if (row + column) % 2 == 0:
                    x, y = w * column / 3, h * (0.3 + 0.175 * row)
                    draw.rectangle((x, y, x + w / 3, y + h * 0.175), fill=accent)
    elif product.pattern == "diagonal":
        for i in range(-1, 3):
            x = w * 0.55 * i
            draw.polygon(
                [(x, h), (x + w * 0.25, h), (x + w * 0.25 + h * 0.55, 0), (x + h * 0.55, 0)], fill=accent
            )
