"""The other ranks of a worker that renders on several devices, as its supervisor holds them.

None of them can go on without the others: one that ends, ends all.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from contract.devices import CPU_NAME
from contract.entries import InterruptReason
from contract.memory import MemoryMode
from contract.processes import last_words
from workers.messages import ChildConfig, RankFailed, Unloadable
from workers.process import WorkerProcess, describe_end

SETTLING_S = 1.0
"""When a rank ends, those that waited for it end too. So long is waited to tell them apart."""


@dataclass(frozen=True)
class LostRank:
    """A rank that ended, and took the others with it."""

    cause: str
    """A sentence without its end: which rank and how it ended."""
    reason: InterruptReason
    problem: str | None = None
    """Why it could not load the model."""
    fall_back: MemoryMode | None = None
    """What all ranks go on in because the memory of its device was too small."""


@dataclass
class Follower(WorkerProcess):
    """A rank that is not the first."""

    rank: int = 0
    device: str = CPU_NAME
    failure: RankFailed | None = None
    problem: str | None = None

    @property
    def name(self) -> str:
        return f"rank {self.rank} ({self.device})"

    def listen(self) -> None:
        """Note what it reports."""
        while messages := self.receive():
            for message in messages:
                if isinstance(message, RankFailed):
                    self.failure = message
                elif isinstance(message, Unloadable):
                    self.problem = message.cause

    def lost(self) -> LostRank:
        status = self.process.returncode
        if self.failure is not None:
            cause = f"{self.name} failed: {self.failure.cause}"
            reason: InterruptReason = "out_of_memory" if self.failure.out_of_memory else "error"
            return LostRank(cause, reason, fall_back=self.failure.fall_back)
        if self.problem is not None:
            return LostRank(
                f"{self.name} {describe_end(status)}", "child_died", f"{self.name}: {self.problem}"
            )
        cause = f"{self.name} {describe_end(status)}"
        if status > 0 and (said := last_words(self.words.text())):
            cause += f". Its last words:\n{said}"
        return LostRank(cause, "child_died")

    def blame(self) -> int:
        """The less, the more likely it is the one that ended the others."""
        if self.process.returncode < 0:
            return 0
        return 2 if self.failure is not None and self.failure.peer_lost else 1


@dataclass
class Followers:
    """All ranks of a worker but the first."""

    ranks: list[Follower] = field(default_factory=list)

    @classmethod
    def start(cls, devices: Sequence[str], config: Callable[[int, int], ChildConfig]) -> Followers:
        """Start one per device behind the first; `config` is given the rank and where it is to report."""
        followers = cls()
        for rank, device in list(enumerate(devices))[1:]:
            follower = Follower.start("workers.rank", partial(config, rank), environment(devices))
            follower.rank, follower.device = rank, device
            followers.ranks.append(follower)
        return followers

    def fds(self) -> list[int]:
        """Readable when a rank has something to say, or has ended."""
        return [follower.reports for follower in self.ranks]

    def lost(self, readable: Collection[int]) -> LostRank | None:
        """The rank that ended and took the others with it, if one has. `readable` says whom to ask."""
        ended = False
        for follower in self.ranks:
            if follower.reports in readable:
                follower.listen()
                ended = ended or follower.receive() is None
        if not ended:
            return None
        deadline = time.monotonic() + SETTLING_S
        while True:
            gone = [follower for follower in self.ranks if follower.process.poll() is not None]
            killed = any(follower.process.returncode < 0 for follower in gone)
            if killed or len(gone) == len(self.ranks) or time.monotonic() > deadline:
                break
            time.sleep(0.02)
        for follower in gone:
            follower.listen()
        return min(gone, key=Follower.blame).lost() if gone else None

    def stopped(self) -> Iterator[str]:
        """Names of the ranks that somebody has stopped."""
        return (follower.name for follower in self.ranks if follower.is_stopped)

    def kill(self) -> None:
        """They hold nothing that would be lost."""
        for follower in self.ranks:
            follower.process.kill()
        for follower in self.ranks:
            follower.end()
            follower.close()
        self.ranks.clear()


def environment(devices: Sequence[str]) -> dict[str, str]:
    """Of every rank of a worker; what is set already counts."""
    # Threads that wait must sleep. Where cores are shared, spinning takes four times the CPU.
    variables = {"OMP_WAIT_POLICY": "PASSIVE"}
    if len(devices) > 1:
        with suppress(OSError, StopIteration):  # ranks share a machine: nothing of theirs leaves it
            loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
            variables |= {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback}
        if devices[0] == CPU_NAME:
            variables["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // len(devices)))
    return variables
