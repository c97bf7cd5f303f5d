"""A folder of encoded clips, written once, even while training reads it, and drawn from at random."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import load_file, save_file

from .clips import HOI_PROMPT_PREFIX, ClipEncoder, EncodedClip, TrainingClip
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

    def __init__(self, folder: Path) -> None:
        """Open the folder.

        Raises:
            FileNotFoundError: it holds no encoded clips.
        """
        self._folder = folder
        self._loaded: dict[Path, EncodedClip] = {}
        self.after_motion: list[Path] = []
        self.first: list[Path] = []
        self.refresh()
        if not self.after_motion and not self.first:
            raise FileNotFoundError(f"{folder} holds no encoded clips")
        empty = load_file(folder / EMPTY_PROMPT)
        self.empty_prompt, self.empty_hoi_prompt = empty["prompt"].float(), empty["hoi_prompt"].float()

    def refresh(self) -> None:
        self.after_motion = sorted(self._folder.glob(f"[!.]*{MOTION_SUFFIX}"))
        self.first = sorted(self._folder.glob(f"[!.]*{FIRST_SUFFIX}"))

    def load(self, path: Path) -> EncodedClip:
        if path not in self._loaded:
            self._loaded[path] = EncodedClip.load(path)
        return self._loaded[path]


def fill_cache(
    folder: Path,
    clips: Clips,
    encoder: ClipEncoder,
    indices: Iterable[int] | None = None,
    *,
    first_clips_too: bool = True,
    workers: int = 0,
) -> None:
    """Encode clips. Those that are already encoded stay as they are.

    A clip with motion frames is encoded after them. With `first_clips_too` it is also encoded as a first
    clip, for motion dropout.
    """
    write_empty_prompt(folder, encoder)

    def paths(index: int) -> tuple[Path, Path]:
        return folder / f"{index:06d}{MOTION_SUFFIX}", folder / f"{index:06d}{FIRST_SUFFIX}"

    def is_done(index: int) -> bool:  # the first clip is written last
        motion_path, first_path = paths(index)
        return first_path.exists() or (motion_path.exists() and not first_clips_too)

    pending = [index for index in (range(len(clips)) if indices is None else indices) if not is_done(index)]
    for index, clip in zip(pending, prefetched(clips.__getitem__, pending, workers), strict=True):
        motion_path, first_path = paths(index)
        if clip.motion is not None and not motion_path.exists():
            encoder.encode(clip, after_motion=True).save(motion_path)
        if clip.motion is None or first_clips_too:
            encoder.encode(clip, after_motion=False).save(first_path)
        log.info("encoded clip %d", index)


def write_empty_prompt(folder: Path, encoder: ClipEncoder) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {"prompt": encoder.prompt(""), "hoi_prompt": encoder.prompt(f"{HOI_PROMPT_PREFIX} ")},
        folder / EMPTY_PROMPT,
    )


def stack(tensors: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    """The clips' tensors as a batch; None if any clip has none."""
    present = [tensor for tensor in tensors if tensor is not None]
    return torch.stack(present) if len(present) == len(tensors) else None
