"""Blocks of a network that lie in main memory and pass through two places on the device.

While one block computes, the next one is copied into the other place, on a queue of its own. Behind the last
block comes the first again, so a pass through the network finds its first block waiting. Each block lies in
main memory as one slab of exactly its size, pinned as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from model.memory.lanes import Lanes

_ALIGNMENT = 256
"""Each tensor begins at a multiple of so many bytes, as in memory that CUDA has given out."""

PLACES = 2


@dataclass(frozen=True)
class _Entry:
    """One tensor of a block, and where it lies in the slab."""

    put: Callable[[torch.Tensor], None]
    offset: int
    dtype: torch.dtype
    shape: torch.Size

    def within(self, slab: torch.Tensor) -> torch.Tensor:
        """(bytes,) uint8 → this tensor, without copying."""
        size = math.prod(self.shape) * self.dtype.itemsize
        return slab[self.offset : self.offset + size].view(self.dtype).view(self.shape)


class _Slab:
    """All weights of one block in one piece of main memory."""

    def __init__(self, block: nn.Module, lanes: Lanes) -> None:
        tensors = list(_tensors(block))
        entries, end = [], 0
        for put, tensor in tensors:
            entries.append(_Entry(put, end, tensor.dtype, tensor.shape))
            end += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        self.entries = tuple(entries)
        self.memory = torch.empty(end, dtype=torch.uint8)
        for (_, tensor), entry in zip(tensors, entries, strict=True):
            entry.within(self.memory).copy_(tensor)
        lanes.lock(self.memory)
        self.bind(self.memory)  # frees what the block held before

    def bind(self, memory: torch.Tensor) -> None:
        """Let the block's weights be those in `memory`, laid out as the slab is."""
        for entry in self.entries:
            entry.put(entry.within(memory))


@dataclass
class _Place:
    """Room for one block on the device."""

    memory: torch.Tensor
    free: Any
    """Mark behind the last computing that reads it."""
    holds: int | None = None
    filled: Any = None
    """Mark behind the copy of the block that it holds."""


class BlockStream:
    """The way of blocks through the device. They are called in order, one pass after the other."""

    def __init__(self, blocks: Sequence[nn.Module], device: torch.device, lanes: Lanes) -> None:
        self._device = device
        self._lanes = lanes
        self._slabs = [_Slab(block, lanes) for block in blocks]
        self._places: list[_Place] = []
        for index, block in enumerate(blocks):
            block.register_forward_pre_hook(partial(_call, self._arrive, index))
            block.register_forward_hook(partial(_call, self._leave, index))

    @property
    def host_bytes(self) -> int:
        """Main memory that the blocks take."""
        return sum(slab.memory.nbytes for slab in self._slabs)

    @property
    def place_bytes(self) -> int:
        """Device memory of one place: the largest block's."""
        return max((slab.memory.nbytes for slab in self._slabs), default=0)

    def park(self) -> None:
        """Give the device's memory back until the next pass."""
        for place in self._places:
            if place.filled is not None:
                # A copy on its way must not write into what the memory is used for next.
                self._lanes.compute_after(place.filled)
        self._places.clear()

    def _arrive(self, index: int) -> None:
        """Before a block computes: have its weights there, and send for the next block's."""
        if not self._places:
            memories = [
                torch.empty(self.place_bytes, dtype=torch.uint8, device=self._device) for _ in range(PLACES)
            ]
            # Whoever had this memory before may still be computing with it.
            free = self._lanes.computed()
            self._places = [_Place(memory, free) for memory in memories]
        here = next((place for place in self._places if place.holds == index), None)
        if here is None:
            here = self._places[0]
            self._fetch(index, here)
        following = (index + 1) % len(self._slabs)
        if following != index and all(place.holds != following for place in self._places):
            self._fetch(following, next(place for place in self._places if place is not here))
        self._lanes.compute_after(here.filled)
        self._slabs[index].bind(here.memory)

    def _leave(self, index: int) -> None:
        """Behind a block's computing: its place may be filled again."""
        here = next(place for place in self._places if place.holds == index)
        here.free = self._lanes.computed()
        self._slabs[index].bind(self._slabs[index].memory)

    def _fetch(self, index: int, place: _Place) -> None:
        self._lanes.copy_after(place.free)
        slab = self._slabs[index].memory
        self._lanes.copy(place.memory[: slab.nbytes], slab)
        place.holds, place.filled = index, self._lanes.copied()


def _call(act: Callable[[int], None], index: int, *hook_arguments: object) -> None:
    act(index)


def _tensors(block: nn.Module) -> list[tuple[Callable[[torch.Tensor], None], torch.Tensor]]:
    """Each parameter and buffer of a block, and what replaces its values."""

    def replace_parameter(parameter: nn.Parameter, values: torch.Tensor) -> None:
        parameter.data = values

    def replace_buffer(owner: nn.Module, name: str, values: torch.Tensor) -> None:
        owner._buffers[name] = values

    found: list[tuple[Callable[[torch.Tensor], None], torch.Tensor]] = []
    for module in block.modules():
        for parameter in module.parameters(recurse=False):
            found.append((partial(replace_parameter, parameter), parameter.data))
        for name, buffer in module.named_buffers(recurse=False):
            found.append((partial(replace_buffer, module, name), buffer))
    return found
