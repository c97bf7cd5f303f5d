"""Progress that speaks of finished work: the host never runs more than one report ahead of the device.

Calls to a GPU return before it has done anything, and a host that does not wait would report, and could be
told to cancel, minutes ahead of the picture. So each report marks the work queued so far and is passed on
only when the device gets there; until then the host may queue what belongs to the next one, and no more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

import torch

from contract.job import OnProgress, Stage


class Mark(Protocol):
    """A place in the work queued on a device."""

    def synchronize(self) -> None:
        """Wait until the device has got here."""


def cuda_mark(device: torch.device) -> Mark:
    """Behind all that is queued now. Waiting for it sleeps instead of turning a core's wheels."""
    event = torch.cuda.Event(blocking=True)
    event.record(torch.cuda.current_stream(device))
    return event


class Pace:
    """Passes reports on to `on_progress`, each as soon as what it says is true."""

    def __init__(
        self,
        on_progress: OnProgress | None,
        device: torch.device,
        mark: Callable[[torch.device], Mark] = cuda_mark,
    ) -> None:
        self._on_progress = on_progress
        self._device = device
        self._mark = mark if device.type == "cuda" else None
        self._ahead: deque[tuple[Mark, Stage, int, int]] = deque()

    def report(self, stage: Stage, clip: int, step: int = 0) -> None:
        """Say that everything up to here is queued; what `on_progress` raises comes out of here."""
        if self._mark is None:  # a CPU is never behind
            self._pass_on(stage, clip, step)
            return
        self._ahead.append((self._mark(self._device), stage, clip, step))
        self._wait(at_most=1)

    def of_clip(self, clip: int) -> Callable[[Stage, int], None]:
        """`report` for the steps of one clip."""
        return lambda stage, step: self.report(stage, clip, step)

    def catch_up(self) -> None:
        """Wait for the device and pass everything on."""
        self._wait(at_most=0)

    def _wait(self, at_most: int) -> None:
        while len(self._ahead) > at_most:
            mark, stage, clip, step = self._ahead.popleft()
            mark.synchronize()
            self._pass_on(stage, clip, step)

    def _pass_on(self, stage: Stage, clip: int, step: int) -> None:
        if self._on_progress is not None:
            self._on_progress(stage, clip, step)
