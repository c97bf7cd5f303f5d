"""A device whose two queues run in simulated time: a copy arrives when it would arrive, not before."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass
class Copy:
    """One copy on the device's timetable."""

    target: torch.Tensor
    source: torch.Tensor
    start: float
    end: float
    done: bool = False


@dataclass
class SimulatedLanes:
    """Each queue has a clock of its own. Times are in seconds of the device that is simulated.

    The host here computes at once, so computing is what `spend` says it takes. A copy's bytes reach their
    target only when computing has waited for a mark behind it, or when a later copy reads the clock past it:
    whoever forgets to wait computes with old bytes.
    """

    seconds_per_byte: float
    compute_clock: float = 0.0
    copy_clock: float = 0.0
    waited: float = 0.0
    """Time in which nothing was computed because something had not arrived."""
    copies: list[Copy] = field(default_factory=list)
    reads: list[tuple[int, float, float]] = field(default_factory=list)
    """(address, start, end) of each computing that reads memory on the device."""
    locked: int = 0

    def spend(self, seconds: float, memory: torch.Tensor | None = None) -> None:
        """Compute for so long, reading the storage of `memory`."""
        if memory is not None:
            address = memory.untyped_storage().data_ptr()
            self.reads.append((address, self.compute_clock, self.compute_clock + seconds))
        self.compute_clock += seconds

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        start = self.copy_clock
        self.copy_clock += source.nbytes * self.seconds_per_byte
        self.copies.append(Copy(target, source, start, self.copy_clock))

    def copied(self) -> float:
        return self.copy_clock

    def computed(self) -> float:
        return self.compute_clock

    def compute_after(self, mark: float) -> None:
        self.waited += max(0.0, mark - self.compute_clock)
        self.compute_clock = max(self.compute_clock, mark)
        for copy in self.copies:
            if copy.end <= mark and not copy.done:
                copy.target.copy_(copy.source)
                copy.done = True

    def copy_after(self, mark: float) -> None:
        self.copy_clock = max(self.copy_clock, mark)

    def lock(self, memory: torch.Tensor) -> None:
        self.locked += memory.nbytes

    def overwritten_reads(self) -> list[tuple[int, float]]:
        """Copies into memory that was being read: (address, time)."""
        return [
            (address, copy.start)
            for copy in self.copies
            for address, start, end in self.reads
            if copy.target.untyped_storage().data_ptr() == address and copy.start < end and start < copy.end
        ]
