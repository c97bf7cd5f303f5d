"""What a worker needs from a model: clips made from a job's files. It knows neither queue nor journal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from contract.attention import AttentionReport
from contract.job import OnProgress
from contract.memory import MemoryMode
from contract.params import GenerationParams


class OutOfMemory(Exception):
    """The device has too little memory for this job. Only a fresh process gets all of the memory back."""


class DeviceFailed(Exception):
    """The device reported an error, and this process can no longer use it."""


@dataclass(frozen=True)
class RenderRequest:
    """A job's settings and local files."""

    params: GenerationParams
    person_image: Path
    audio: Path
    product_image: Path | None
    pose_video: Path | None
    first_clip: int = 0
    motion: Path | None = None
    """The motion file of clip `first_clip - 1`."""


@dataclass(frozen=True)
class ClipFiles:
    """Where the files of a clip are to be written."""

    video: Path
    motion: Path
    """The frames that the next clip needs."""
    poster: Path
    """A frame from its middle, small (JPEG)."""
    router_map: Path
    """Where the router sent hands and faces (MP4), if that was asked for and is known."""


class RenderedClip(Protocol):
    """A finished clip, still in memory."""

    @property
    def index(self) -> int: ...

    def save(self, files: ClipFiles) -> None:
        """Write the clip's files. Equal clips give equal bytes. It may be called again."""


@dataclass(frozen=True)
class FinishedVideo:
    duration_s: float


class ClipStream(Protocol):
    """Makes the clips of one job into fragments of a stream."""

    def write(self, index: int, video: Path, header_path: Path, path: Path) -> None:
        """Write a clip's fragment, with its slice of the speech, and what goes before the first fragment.
        Equal clips give equal bytes. It may be called again.
        """


class Engine(Protocol):
    """A model in this process."""

    @property
    def device_name(self) -> str:
        """The model of its device, such as "NVIDIA H200", or "cpu"."""

    @property
    def libraries(self) -> Mapping[str, str]:
        """Versions of what it computes with, by package."""

    @property
    def attention(self) -> AttentionReport | None:
        """Its attention backend; None if it has none."""

    @property
    def fp8_compute(self) -> bool:
        """Whether it multiplies in 8 bits what its checkpoint stores in 8 bits."""

    @property
    def memory_mode(self) -> MemoryMode:
        """Where its weights lie."""

    @property
    def next_memory_mode(self) -> MemoryMode | None:
        """The mode to go on in when the device's memory is too small; None if there is none."""

    def render(self, request: RenderRequest, on_progress: OnProgress) -> Iterator[RenderedClip]:
        """The clips from `first_clip` on, each as soon as it is done.

        Raises ValueError if the inputs can never work, OutOfMemory, DeviceFailed.
        """

    def stream(self, request: RenderRequest) -> ClipStream:
        """What makes fragments of the job's clips."""

    def finish(
        self, request: RenderRequest, clips: Sequence[Path], video: Path, poster: Path
    ) -> FinishedVideo:
        """Join all clips and the speech into `video` (MP4); write its first frame to `poster` (JPEG)."""

    def release(self) -> None:
        """Free what the last attempt, finished or not, has left in memory."""
