"""What the child tells its supervisor over a pipe: one tagged JSON line for each message."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, TypeAdapter

from contract.attention import AttentionReport
from contract.frozen import Frozen
from contract.job import Stage
from contract.memory import MemoryMode
from contract.settings import Settings
from contract.speed import Speed
from contract.worker import LiveProgress, RunningJob

LONGEST_CAUSE: Final = 1000
"""Characters of an error that are told."""


class ChildConfig(Frozen):
    """All that a child must know. The supervisor writes it to the child's standard input as one line.

    The other ranks of a worker on several devices get the same.
    """

    settings: Settings
    redis_url: str
    name: str
    checkpoint: str
    folder: Path
    devices: tuple[str, ...]
    """One per rank."""
    memory_mode: MemoryMode | None
    """Where weights lie; None: the fastest mode that fits."""
    rank: int = 0
    meeting: Path | None = None
    """A file in a private folder, where several ranks find each other."""
    parent_pid: int
    report_fd: int


class Ready(Frozen):
    """The model is loaded."""

    type: Literal["ready"] = "ready"
    attention: AttentionReport | None = None
    memory_mode: MemoryMode


class Unloadable(Frozen):
    """The model cannot be loaded; the child ends."""

    type: Literal["unloadable"] = "unloadable"
    cause: str


class RankFailed(Frozen):
    """A rank that is not the first cannot go on; it ends."""

    type: Literal["rank_failed"] = "rank_failed"
    cause: str
    out_of_memory: bool
    fall_back: MemoryMode | None
    """The device's memory was too small: all ranks go on in this mode."""
    peer_lost: bool
    """It only waited in vain for another one."""


class Working(Frozen):
    """The child has claimed a job and begins the attempt."""

    type: Literal["working"] = "working"
    running: RunningJob
    waited_s: float | None = None
    """Seconds since the submit; None if the job was tried before."""


class Progressed(Frozen):
    """The attempt made progress."""

    type: Literal["progressed"] = "progressed"
    progress: LiveProgress


class ClipDone(Frozen):
    type: Literal["clip_done"] = "clip_done"
    seconds: float
    speed: Speed | None


class Ended(Frozen):
    """The attempt is over and recorded in the journal, or somebody else has taken the job."""

    type: Literal["ended"] = "ended"
    outcome: Literal["succeeded", "failed", "interrupted", "superseded"]
    cause: str = ""
    stage: Stage
    fall_back: MemoryMode | None = None
    """The device's memory was too small: the next child goes on in this mode."""


Message = Annotated[
    Ready | Unloadable | RankFailed | Working | Progressed | ClipDone | Ended, Field(discriminator="type")
]
MESSAGE: TypeAdapter[Message] = TypeAdapter(Message)
