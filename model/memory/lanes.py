"""The two queues of a device: one computes, one copies. Marks put them in order; the host never waits."""

from __future__ import annotations

import logging
from typing import Any, Protocol

import torch

logger = logging.getLogger(__name__)


class Lanes(Protocol):
    """What `BlockStream` asks of a device."""

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Queue a copy from main memory to the device, behind all copies queued before."""

    def copied(self) -> Any:
        """A mark behind all copies queued so far."""

    def computed(self) -> Any:
        """A mark behind all computing queued so far."""

    def compute_after(self, mark: Any) -> None:
        """What is computed from now on waits for `mark`."""

    def copy_after(self, mark: Any) -> None:
        """What is copied from now on waits for `mark`."""

    def lock(self, memory: torch.Tensor) -> None:
        """Let the device copy from this main memory while the host goes on."""


class CudaLanes:
    """The current stream of a CUDA device, and one of our own for copies."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies = torch.cuda.Stream(device)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        with torch.cuda.stream(self._copies):
            target.copy_(source, non_blocking=True)

    def copied(self) -> torch.cuda.Event:
        mark: torch.cuda.Event = self._copies.record_event()
        return mark

    def computed(self) -> torch.cuda.Event:
        mark: torch.cuda.Event = torch.cuda.current_stream(self._device).record_event()
        return mark

    def compute_after(self, mark: torch.cuda.Event) -> None:
        torch.cuda.current_stream(self._device).wait_event(mark)

    def copy_after(self, mark: torch.cuda.Event) -> None:
        self._copies.wait_event(mark)

    def lock(self, memory: torch.Tensor) -> None:
        """Pin exactly these bytes, for the life of the process.

        torch's own allocator of pinned memory rounds each piece up to a power of two, which made 72 GB of the
        45 GB of weights that `offload` keeps in main memory.
        """
        with torch.cuda.device(self._device):
            status = int(torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.nbytes, 0))
        if status != 0:
            logger.warning(
                "CUDA error %d: main memory cannot be pinned, so the host waits for each copy", status
            )


class HostLanes:
    """A device that is the host: whatever is queued is done at once."""

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        target.copy_(source)

    def copied(self) -> None:
        return None

    def computed(self) -> None:
        return None

    def compute_after(self, mark: None) -> None:
        pass

    def copy_after(self, mark: None) -> None:
        pass

    def lock(self, memory: torch.Tensor) -> None:
        pass


def lanes_of(device: torch.device) -> Lanes:
    return CudaLanes(device) if device.type == "cuda" else HostLanes()
