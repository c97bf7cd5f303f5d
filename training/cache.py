"""A folder of encoded clips, written once, even while training reads it, and drawn from at random.

Clips of a table are named by what they were encoded from. Other clips in the folder, of rows since changed or
of other runs, stay and are not drawn.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import load_file

from .clips import HOI_PROMPT_PREFIX, ClipEncoder, EncodedClip, TrainingClip, write_tensors
from .prefetch import prefetched

log = logging.getLogger(__name__)

MOTION_SUFFIX, FIRST_SUFFIX = "-motion.safetensors", "-first.safetensors"
EMPTY_PROMPT = "empty-prompt.safetensors"


class Clips(Protocol):
    """Training clips by number, such as `CsvDataset`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> TrainingClip: ...


class ClipCache:
    """Encoded clips of a folder, kept in memory once read. `refresh` finds clips added meanwhile."""

    def __init__(self, folder: Path, names: Collection[str] | None = None, empty: str = EMPTY_PROMPT) -> None:
        """Open the folder.

        Args:
            names: of the clips to draw from; None takes all that the folder holds.
            empty: the file of the empty prompt.

        Raises:
            FileNotFoundError: it holds no encoded clips.
        """
        self._folder = folder
        self._names = names
        self._loaded: dict[Path, EncodedClip] = {}
        self.after_motion: list[Path] = []
        self.first: list[Path] = []
        self.refresh()
        if not self.after_motion and not self.first:
            raise FileNotFoundError(f"{folder} holds no encoded clips")
        prompts = load_file(folder / empty)
        self.empty_prompt, self.empty_hoi_prompt = prompts["prompt"].float(), prompts["hoi_prompt"].float()

    def refresh(self) -> None:
        self.after_motion = self._clips(MOTION_SUFFIX)
        self.first = self._clips(FIRST_SUFFIX)

    def _clips(self, suffix: str) -> list[Path]:
        if self._names is None:
            return sorted(self._folder.glob(f"[!.]*{suffix}"))
        paths = (self._folder / f"{name}{suffix}" for name in sorted(self._names))
        return [path for path in paths if path.exists()]

    @property
    def num_clips(self) -> int:
        """Clips, each counted once if it is encoded both ways."""
        names = {path.name.removesuffix(MOTION_SUFFIX) for path in self.after_motion}
        return len(names | {path.name.removesuffix(FIRST_SUFFIX) for path in self.first})

    def load(self, path: Path) -> EncodedClip:
        if path not in self._loaded:
            self._loaded[path] = EncodedClip.load(path)
        return self._loaded[path]


def fill_cache(
    folder: Path,
    clips: Clips,
    encoder: ClipEncoder,
    indices: Sequence[int] | None = None,
    *,
    name: Callable[[int], str] = "{:06d}".format,
    empty: str = EMPTY_PROMPT,
    first_clips_too: bool = True,
    workers: int = 0,
    on_clip: Callable[[int, int], None] | None = None,
) -> None:
    """Encode clips. Those that are already encoded stay as they are.

    A clip with motion frames is encoded after them. With `first_clips_too` it is also encoded as a first
    clip, for motion dropout.

    Args:
        name: of a clip by its number.
        empty: the file for the empty prompt.
        on_clip: told how many clips are there, and how many there will be.
    """
    write_empty_prompt(folder / empty, encoder)
    wanted = range(len(clips)) if indices is None else indices

    def paths(index: int) -> tuple[Path, Path]:
        return folder / f"{name(index)}{MOTION_SUFFIX}", folder / f"{name(index)}{FIRST_SUFFIX}"

    def is_done(index: int) -> bool:  # the first clip is written last
        motion_path, first_path = paths(index)
        return first_path.exists() or (motion_path.exists() and not first_clips_too)

    pending = [index for index in wanted if not is_done(index)]
    done = len(wanted) - len(pending)
    if on_clip is not None:
        on_clip(done, len(wanted))
    for index, clip in zip(pending, prefetched(clips.__getitem__, pending, workers), strict=True):
        motion_path, first_path = paths(index)
        if clip.motion is not None and not motion_path.exists():
            encoder.encode(clip, after_motion=True).save(motion_path)
        if clip.motion is None or first_clips_too:
            encoder.encode(clip, after_motion=False).save(first_path)
        log.info("encoded clip %d", index)
        done += 1
        if on_clip is not None:
            on_clip(done, len(wanted))


def write_empty_prompt(path: Path, encoder: ClipEncoder) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors({"prompt": encoder.prompt(""), "hoi_prompt": encoder.prompt(f"{HOI_PROMPT_PREFIX} ")}, path)


def stack(tensors: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    """The clips' tensors as a batch; None if any clip has none."""
    present = [tensor for tensor in tensors if tensor is not None]
    return torch.stack(present) if len(present) == len(tensors) else None
