"""A chart of likeness against saving, as SVG."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720, 420
LEFT, RIGHT, TOP, BOTTOM = 60, 20, 20, 50
MOST_SAVING = 5.5
LEAST_DB, MOST_DB = 15, 80
COLOURS = {
    "balanced": "#1a7f37",
    "fast": "#1a7f37",
    "even": "#0969da",
    "first-block": "#bc4c00",
    "mag": "#8250df",
    "exact, other noise": "#57606a",
}
BARS = ((1.9, 45), (3.0, 38))
"""(times fewer, dB) that `balanced` and `fast` must reach."""


@dataclass(frozen=True)
class Point:
    way: str
    saving: float
    """Times fewer forwards than exact."""
    median_db: float
    lowest_db: float

    @property
    def family(self) -> str:
        return self.way.partition(":")[0]


def _x(saving: float) -> float:
    return LEFT + (saving - 1) / (MOST_SAVING - 1) * (WIDTH - LEFT - RIGHT)


def _y(decibel: float) -> float:
    return TOP + (MOST_DB - decibel) / (MOST_DB - LEAST_DB) * (HEIGHT - TOP - BOTTOM)


def _text(x: float, y: float, words: str, anchor: str = "start", colour: str = "#24292f") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" fill="{colour}">{escape(words)}</text>'


def _axes() -> list[str]:
    parts = []
    for saving in (1, 2, 3, 4, 5):
        x = _x(saving)
        parts.append(f'<path d="M{x:.0f} {TOP}V{HEIGHT - BOTTOM}" stroke="#d0d7de"/>')
        parts.append(_text(x, HEIGHT - BOTTOM + 18, f"{saving}×", "middle"))
    for decibel in range(20, MOST_DB + 1, 10):
        y = _y(decibel)
        parts.append(f'<path d="M{LEFT} {y:.0f}H{WIDTH - RIGHT}" stroke="#d0d7de"/>')
        parts.append(_text(LEFT - 8, y + 4, str(decibel), "end"))
    parts.append(_text(WIDTH / 2, HEIGHT - 10, "times fewer forwards than exact", "middle"))
    parts.append(_text(8, TOP + 4, "dB"))
    for saving, decibel in BARS:
        x, y = _x(saving), _y(decibel)
        parts.append(
            f'<path d="M{x:.0f} {TOP}V{y:.0f}H{WIDTH - RIGHT}" fill="none" stroke="#1a7f37" '
            'stroke-dasharray="4 4"/>'
        )
    return parts


def chart(points: Iterable[Point]) -> str:
    """Each way as a dot at its median, with a line down to its worst clip. Dashed: what the presets must
    reach.
    """
    parts = _axes()
    families: dict[str, list[Point]] = {}
    for point in points:
        families.setdefault(point.family, []).append(point)
    for family, members in families.items():
        colour = COLOURS[family]
        members.sort(key=lambda point: point.saving)
        line = "L".join(f"{_x(p.saving):.1f} {_y(p.median_db):.1f}" for p in members)
        parts.append(f'<path d="M{line}" fill="none" stroke="{colour}"/>')
        for point in members:
            x, y = _x(point.saving), _y(point.median_db)
            parts.append(
                f'<path d="M{x:.1f} {y:.1f}V{_y(point.lowest_db):.1f}" stroke="{colour}" '
                'stroke-opacity=".4"/>'
            )
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>')
        last = members[-1]
        words = last.way if len(members) == 1 else family
        parts.append(_text(_x(last.saving) + 7, _y(last.median_db) - 5, words, colour=colour))
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12">\n<rect width="100%" height="100%" fill="#fff"/>\n{body}\n</svg>\n'
    )
