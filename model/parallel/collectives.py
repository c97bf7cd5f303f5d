"""Exchanges between ranks, with their bytes counted. Every tensor between ranks goes through a `Group`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum

import torch
import torch.distributed as dist


class Purpose(StrEnum):
    """What an exchange is for."""

    INPUTS = "inputs"
    """The inputs of a clip, once per clip."""
    ATTENTION = "attention"
    """Queries, keys, values and results, in every block."""
    VELOCITY = "velocity"
    """The network's prediction, once per pass."""
    FRAMES = "frames"
    """Decoded pixels, once per clip."""


@dataclass
class Traffic:
    """Bytes that this rank has received from others."""

    received: Counter[Purpose] = field(default_factory=Counter)


class PeerLost(RuntimeError):
    """Another rank no longer answers."""


@contextmanager
def reaching_peers() -> Iterator[None]:
    """Raise torch's errors about a lost or silent connection as `PeerLost`."""
    try:
        yield
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except RuntimeError as error:
        raise PeerLost(str(error)) from error


@dataclass(frozen=True)
class Pending:
    """A tensor on its way. The sent tensor must not change until `wait` returns."""

    _result: torch.Tensor
    _work: dist.Work | None
    _sent: torch.Tensor

    def wait(self) -> torch.Tensor:
        if self._work is not None:
            with reaching_peers():
                self._work.wait()
        return self._result


@dataclass(frozen=True)
class Group:
    """Some of a worker's ranks, seen from one of them."""

    handle: dist.ProcessGroup
    size: int
    index: int
    """This rank's position in the group."""
    traffic: Traffic

    def exchange(
        self, send: torch.Tensor, sent: Sequence[int], received: Sequence[int], purpose: Purpose
    ) -> Pending:
        """Send each rank its part of the flat `send`, and receive one part from each, in rank order.

        `sent` and `received` are the elements per rank.
        """
        result = send.new_empty(sum(received))
        with reaching_peers():
            work = dist.all_to_all_single(
                result, send, list(received), list(sent), group=self.handle, async_op=True
            )
        others = sum(received) - received[self.index]
        self.traffic.received[purpose] += others * send.element_size()
        return Pending(result, work, send)

    def gather(self, mine: torch.Tensor, purpose: Purpose) -> torch.Tensor:
        """Stack one tensor of the same shape from every rank, on every rank: (size, *shape)."""
        result = mine.new_empty(self.size, *mine.shape)
        with reaching_peers():
            dist.all_gather_single(result.view(-1), mine.contiguous().view(-1), group=self.handle)
        self.traffic.received[purpose] += (self.size - 1) * mine.nbytes
        return result

    def broadcast(self, tensor: torch.Tensor, purpose: Purpose) -> None:
        """Copy the first rank's `tensor` to every rank of the group."""
        with reaching_peers():
            dist.broadcast(tensor, group=self.handle, group_src=0)
        if self.index:
            self.traffic.received[purpose] += tensor.nbytes

    def collect(
        self, mine: torch.Tensor, shapes: Sequence[tuple[int, ...]], purpose: Purpose
    ) -> tuple[torch.Tensor, ...]:
        """Every rank's tensor, with shapes `shapes`, on the group's first rank. Others get an empty tuple."""
        first = self.index == 0
        received = [math.prod(shape) if first else 0 for shape in shapes]
        sent = [mine.numel(), *[0] * (self.size - 1)]
        flat = self.exchange(mine.reshape(-1), sent, received, purpose).wait()
        parts = zip(flat.split(received), shapes, strict=True)
        return tuple(part.view(shape) for part, shape in parts) if first else ()
