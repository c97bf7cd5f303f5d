"""Draws the dashboards' panels from a running Prometheus, for the documentation, without Grafana.

    python -m tools.dashboard_pictures http://127.0.0.1:9090 --minutes 5

It asks Prometheus for the very queries of `tools.dashboards` and writes docs/images/dashboard-*.svg.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Final

import httpx

from tools.dashboards import DASHBOARDS, PER_ROW, RATE, Panel

PICTURES: Final = Path(__file__).parents[1] / "docs" / "images"
WIDTH, TALL, MARGIN = 330, 190, 14
PLOT: Final = (46, 30, 318, 140)
"""Left, top, right, bottom of the lines in a panel."""
POINTS: Final = 120
LINES_PER_PANEL: Final = 6
COLOURS: Final = ("#3d71d9", "#e0752d", "#37872d", "#8f3bb8", "#c4162a", "#0d9488")
UNITS: Final = {"s": " s", "percentunit": " %", "bytes": " GB", "reqps": "/s", "ops": "/s"}
SCALES: Final = {"percentunit": 100.0, "bytes": 1e-9}
Line = tuple[str, list[tuple[float, float]]]


def lines_of(url: str, panel: Panel, start: float, end: float) -> list[Line]:
    """What Prometheus answers to a panel's queries: for each line its legend and its points."""
    found: list[Line] = []
    for query in panel.queries:
        asked: dict[str, str | float] = {"query": query.expr.replace(RATE, "30s"), "start": start, "end": end}
        asked["step"] = (end - start) / POINTS
        answer = httpx.get(f"{url}/api/v1/query_range", params=asked, trust_env=False).raise_for_status()
        for series in answer.json()["data"]["result"]:
            points = [(float(at), float(value)) for at, value in series["values"] if value != "NaN"]
            if points:
                found.append((_named(query.legend, series["metric"]), points))
    return found[:LINES_PER_PANEL]


def _named(legend: str, labels: dict[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), legend)


def drawn(panel: Panel, lines: list[Line], start: float, end: float) -> str:
    """One panel as SVG."""
    left, top, right, bottom = PLOT
    scale, unit = SCALES.get(panel.unit, 1.0), UNITS.get(panel.unit, "")
    most = max((value for _, points in lines for _, value in points), default=0.0) or 1.0
    parts = [
        f'<rect width="{WIDTH}" height="{TALL}" rx="4" fill="#fff" stroke="#d5d9e0"/>',
        f'<text x="12" y="19" font-weight="600">{escape(panel.title)}</text>',
    ]
    for share in (0, 0.5, 1):
        y = bottom - share * (bottom - top)
        parts.append(f'<path d="M{left} {y}H{right}" stroke="#e8eaee"/>')
        label = f"{most * share * scale:.3g}{unit}"
        parts.append(f'<text x="{left - 4}" y="{y + 3}" text-anchor="end" class="small">{label}</text>')
    for index, (legend, points) in enumerate(lines):
        path = " ".join(
            f"{left + (at - start) / (end - start) * (right - left):.1f},"
            f"{bottom - value / most * (bottom - top):.1f}"
            for at, value in points
        )
        colour = COLOURS[index]
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        x, y = 14 + index % 3 * 104, 160 + index // 3 * 15
        parts.append(f'<rect x="{x}" y="{y - 8}" width="8" height="8" fill="{colour}"/>')
        parts.append(f'<text x="{x + 12}" y="{y}" class="small">{escape(legend[:18])}</text>')
    if not lines:
        parts.append(
            f'<text x="{WIDTH / 2}" y="{TALL / 2}" text-anchor="middle" class="small">nothing yet</text>'
        )
    return "".join(parts)


def picture(url: str, name: str, start: float, end: float) -> str:
    """A dashboard as SVG."""
    title, panels = DASHBOARDS[name]
    rows = -(-len(panels) // PER_ROW)
    width, height = PER_ROW * (WIDTH + MARGIN) + MARGIN, rows * (TALL + MARGIN) + 44
    body = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">',
        "<style>.small{font-size:10px;fill:#555}</style>",
        f'<rect width="{width}" height="{height}" fill="#f4f5f7"/>',
        f'<text x="{MARGIN}" y="27" font-size="16" font-weight="600">{escape(title)}</text>',
    ]
    for index, panel in enumerate(panels):
        x, y = MARGIN + index % PER_ROW * (WIDTH + MARGIN), 40 + index // PER_ROW * (TALL + MARGIN)
        lines = lines_of(url, panel, start, end)
        body.append(f'<g transform="translate({x} {y})">{drawn(panel, lines, start, end)}</g>')
    return "\n".join([*body, "</svg>"]) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.dashboard_pictures", description="Draw the dashboards."
    )
    parser.add_argument("url", help="of Prometheus")
    parser.add_argument("--minutes", type=float, default=5.0, help="how far back to look")
    options = parser.parse_args(arguments)
    end = time.time()
    for name in DASHBOARDS:
        text = picture(options.url, name, end - 60 * options.minutes, end)
        (PICTURES / f"dashboard-{name}.svg").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
