"""What the child tells its supervisor over a pipe: one tagged JSON line for each message."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from contract.attention import AttentionReport
from contract.frozen import Frozen
from contract.job import Stage
from contract.memory import MemoryMode
from contract.settings import Settings
from contract.speed import Speed
from contract.worker import LiveProgress, RunningJob


class ChildConfig(Frozen):
    """All that a child must know. The supervisor writes it to the child's standard input as one line."""

    settings: Settings
    redis_url: str
    name: str
    checkpoint: str
    folder: Path
    device: str
    memory_mode: MemoryMode | None
    """Where weights lie; None: the fastest mode that fits."""
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


class Working(Frozen):
    """The child has claimed a job and begins the attempt."""

    type: Literal["working"] = "working"
    running: RunningJob


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


Message = Annotated[Ready | Unloadable | Working | Progressed | ClipDone | Ended, Field(discriminator="type")]
MESSAGE: TypeAdapter[Message] = TypeAdapter(Message)
