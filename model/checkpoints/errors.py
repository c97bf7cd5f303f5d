"""What can be wrong with weight files, told with the tensor's name, the file and what was expected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

_SHOWN = 20
"""Problems listed in one message. A wrong file differs in hundreds of tensors, and a few tell what is wrong.
"""


class Fault(StrEnum):
    MISSING = "missing tensor"
    UNEXPECTED = "unexpected tensor"
    DUPLICATE = "duplicated tensor"
    WRONG_SHAPE = "mis-shaped tensor"
    WRONG_TYPE = "wrong type"
    EMPTY = "zero-size tensor"
    NOT_FINITE = "NaN or infinity"
    UNREADABLE = "unreadable file"


@dataclass(frozen=True)
class Problem:
    fault: Fault
    where: str
    """Tensor name, or file name for an unreadable file."""
    detail: str
    """What was expected, what was found, and in which file."""

    def __str__(self) -> str:
        return f"{self.fault}: {self.where}: {self.detail}"


class CheckpointError(ValueError):
    """Weight files cannot be used. `problems` holds every problem found before reading stopped."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        shown = [str(problem) for problem in self.problems[:_SHOWN]]
        if len(self.problems) > _SHOWN:
            shown.append(f"… and {len(self.problems) - _SHOWN} more")
        super().__init__("\n".join(shown))


def unreadable(file: object, detail: str) -> CheckpointError:
    return CheckpointError([Problem(Fault.UNREADABLE, str(file), detail)])
