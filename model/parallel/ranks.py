"""The processes that render one job together, seen from one of them: joining, groups, rank 0's messages.

Rank 0 leads. Tensors go from device to device. Rank 0's messages are bytes that go from process to process,
on a group of their own that never times out, because days may pass between two jobs.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from model.parallel.arrangement import degrees
from model.parallel.collectives import Group, Traffic, reaching_peers

_WITHOUT_END = timedelta(days=3650)


@dataclass(frozen=True)
class Place:
    """A process's rank in its worker, and where the ranks meet."""

    rank: int
    devices: tuple[str, ...]
    """One per rank."""
    meeting: Path
    """A file that does not exist yet, in a folder that only this user can enter."""
    timeout_s: float
    """The process ends if a tensor takes longer than this to arrive."""

    @property
    def device(self) -> torch.device:
        return torch.device(self.devices[self.rank])


@dataclass(frozen=True)
class Arrangement:
    """This rank's part in the denoising steps of one clip."""

    conditional: bool
    unconditional: bool
    sequence: Group | None
    """The ranks that share the tokens of a pass; None if this rank has all tokens."""
    partners: Group | None
    """This rank and the one with the same tokens of the other pass; None if this rank runs both passes."""


ALONE = {
    guided: Arrangement(conditional=True, unconditional=guided, sequence=None, partners=None)
    for guided in (False, True)
}
"""The arrangement of a single device, with and without guidance."""


class Control:
    """Rank 0's messages to all other ranks, in order."""

    def __init__(self, handle: dist.ProcessGroup, leads: bool) -> None:
        self._handle = handle
        self.leads = leads

    def tell(self, message: bytes) -> None:
        self._broadcast(torch.tensor([len(message)]))
        self._broadcast(torch.frombuffer(bytearray(message), dtype=torch.uint8))

    def hear(self) -> bytes:
        """Wait for the next message."""
        length = torch.zeros(1, dtype=torch.int64)
        self._broadcast(length)
        message = torch.empty(int(length), dtype=torch.uint8)
        self._broadcast(message)
        return message.numpy().tobytes()

    def _broadcast(self, tensor: torch.Tensor) -> None:
        with reaching_peers():
            dist.broadcast(tensor, group=self._handle, group_src=0)


class Ranks:
    """All ranks of a worker. Every process must call the same methods in the same order."""

    def __init__(self, place: Place) -> None:
        """Join the other ranks. Returns once all have joined.

        Raises:
            RuntimeError: some rank did not join within `place.timeout_s`.
        """
        self.rank, self.size = place.rank, len(place.devices)
        self.device = place.device
        self._patience = timedelta(seconds=place.timeout_s)
        self.traffic = Traffic()
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        dist.init_process_group(
            backend_for(self.device),
            init_method=f"file://{place.meeting}",
            rank=self.rank,
            world_size=self.size,
            timeout=self._patience,
            device_id=self.device if self.device.type == "cuda" else None,
        )
        everyone = list(range(self.size))
        control = dist.new_group(everyone, timeout=_WITHOUT_END, backend="gloo")
        self.control = Control(control, leads=self.rank == 0)
        self.world = self._group([everyone])
        self._sequences = {self.size: self.world}
        self._partners: Group | None = None
        half, rest = divmod(self.size, 2)
        if not rest:
            if half > 1:
                self._sequences[half] = self._group([everyone[:half], everyone[half:]])
            self._partners = self._group([[rank, rank + half] for rank in range(half)])

    def arrangement(self, guided: bool) -> Arrangement:
        """This rank's part in a clip with or without guidance."""
        guidance, sequence = degrees(self.size, guided)
        group = self._sequences[sequence] if sequence > 1 else None
        if guidance == 1:
            return Arrangement(conditional=True, unconditional=guided, sequence=group, partners=None)
        conditional = self.rank < self.size // 2
        return Arrangement(conditional, not conditional, group, self._partners)

    def leave(self) -> None:
        dist.destroy_process_group()

    def _group(self, parts: list[list[int]]) -> Group:
        """The one of `parts` that this rank is in. torch requires every rank to create every group."""
        mine: Group | None = None
        for part in parts:
            handle = dist.new_group(part, timeout=self._patience)
            if self.rank in part:
                mine = Group(handle, len(part), part.index(self.rank), self.traffic)
        if mine is None:
            raise ValueError(f"rank {self.rank} is in none of {parts}")
        return mine


def backend_for(device: torch.device) -> str:
    """The torch backend that carries tensors between devices of this kind."""
    return "nccl" if device.type == "cuda" else "gloo"
