"""The table of a data set: a CSV in the official columns, as programs and spreadsheets write it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

REQUIRED = ("prompt", "input_video", "audio", "person_image")
COLUMNS = (
    *REQUIRED, "motion_video", "product_image", "hoi_video", "depth_video", "pose_video", "face",
    "hand_object", "height", "width", "scale",
)  # fmt: skip
"""Early official tables call hoi_video depth_video."""
SEPARATORS = ",;\t"


@dataclass(frozen=True)
class Row:
    """One clip. Columns that the table lacks are empty cells."""

    number: int
    """Counted from 1, without the header."""
    cells: Mapping[str, str]
    faults: tuple[str, ...] = ()

    def __getitem__(self, column: str) -> str:
        return self.cells.get(column, "")


def read_table(path: Path) -> list[Row]:
    """Read the rows. Cells are stripped, and "nan" is an empty cell, as pandas writes it.

    Raises:
        ValueError: no text in UTF-8, no such table, a required column is missing, or a column's name is
            nearly that of a known one.
    """
    lines = _parsed(path, _text(path))
    if not lines:
        raise ValueError(f"{path} is empty")
    header = [name.strip() for name in lines[0]]
    _check_header(path, header)
    rows: list[Row] = []
    for cells in lines[1:]:
        if any(cell.strip() for cell in cells):
            rows.append(_row(len(rows) + 1, header, cells))
    if not rows:
        raise ValueError(f"{path} has no rows")
    return rows


def nearest(name: str, known: Sequence[str]) -> str:
    """What to add to a message about an unknown name: the known one that it resembles, if there is one."""
    found = get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {found[0]}?" if found else ""


def _text(path: Path) -> str:
    data = path.read_bytes()
    encoding = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 (byte {error.start}); save it as CSV UTF-8") from error


def _parsed(path: Path, text: str) -> list[list[str]]:
    """Cells by line. The separator is the one that yields the most known columns."""

    def cut(separator: str) -> Iterator[list[str]]:
        return csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)

    def known(separator: str) -> int:
        return sum(name.strip() in COLUMNS for name in next(cut(separator), []))

    try:
        return list(cut(max(SEPARATORS, key=known)))
    except csv.Error as error:
        raise ValueError(f"{path} is not a CSV: {error}") from error


def _check_header(path: Path, header: Sequence[str]) -> None:
    twice = {name for name in header if name and header.count(name) > 1}
    if twice:
        raise ValueError(f"{path} has the column {', '.join(sorted(twice))} twice")
    missing = [column for column in REQUIRED if column not in header]
    others = [name for name in header if name not in COLUMNS]
    if missing:
        hints = "".join(nearest(column, others) for column in missing[:1])
        raise ValueError(f"{path} lacks the columns {', '.join(missing)}{hints}")
    absent = [column for column in COLUMNS if column not in header]
    for name in others:
        if get_close_matches(name, absent, n=1, cutoff=0.75):
            raise ValueError(f"{path} has an unknown column {name}{nearest(name, absent)}")


def _row(number: int, header: Sequence[str], cells: Sequence[str]) -> Row:
    given = {name: cell.strip() for name, cell in zip(header, cells, strict=False)}
    faults: tuple[str, ...] = ()
    if len(cells) > len(header):
        faults = (
            f"the row has {len(cells)} cells and the header {len(header)}: put cells that hold commas, such "
            "as boxes, into quotes, and double the quotes within",
        )
    return Row(number, {name: "" if cell == "nan" else cell for name, cell in given.items()}, faults)
