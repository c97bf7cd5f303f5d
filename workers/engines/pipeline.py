"""The real engine: the CoInteract pipeline on one device."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch

from contract.attention import AttentionBackend
from contract.job import OnProgress
from contract.memory import MemoryMode
from contract.video import FPS
from model.attention_choice import choose_attention
from model.checkpoints.card_file import read_card
from model.checkpoints.load import load_pipeline
from model.inputs import VideoInputs
from model.media import encode_clip, join_clips, load_audio, load_image, load_pose
from model.memory.needs import tokens
from model.memory.offload import next_mode
from model.pipeline import Clip
from workers.engines.engine import DeviceFailed, FinishedVideo, OutOfMemory, RenderRequest

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PipelineClip:
    clip: Clip

    @property
    def index(self) -> int:
        return self.clip.index

    def save(self, video: Path, motion: Path) -> None:
        encode_clip(self.clip.frames, video)
        with motion.open("wb") as file:
            np.save(file, self.clip.motion_frames)


def dtype_on(device: str) -> torch.dtype:
    """What networks compute in."""
    return torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32


def inputs_of(request: RenderRequest) -> VideoInputs:
    """The files of a request, read."""
    params = request.params
    size = (params.width, params.height)
    return VideoInputs(
        person_image=load_image(request.person_image),
        audio=load_audio(request.audio),
        product_image=load_image(request.product_image) if request.product_image else None,
        pose_frames=load_pose(request.pose_video, size=size, max_frames=params.num_frames)
        if request.pose_video
        else None,
    )


class PipelineEngine:
    """Holds the checkpoint in `folder` on `device` for the life of the process."""

    def __init__(
        self,
        folder: Path,
        device: str,
        attention: AttentionBackend = AttentionBackend.AUTO,
        memory_mode: MemoryMode | None = None,
    ) -> None:
        self._on_gpu = torch.device(device).type == "cuda"
        self.pipeline = load_pipeline(folder, device=device, dtype=dtype_on(device), memory=memory_mode)
        self.memory_mode = self.pipeline.streams.mode
        self.next_memory_mode = next_mode(folder, self.memory_mode) if self._on_gpu else None
        width, height = map(int, read_card(folder).sizes[0].split("x"))
        choice = choose_attention(
            self.pipeline.transformer,
            attention,
            tokens(width, height),
            torch.device(device),
            dtype_on(device),
        )
        self.attention = choice.report()

    def render(self, request: RenderRequest, on_progress: OnProgress) -> Iterator[PipelineClip]:
        with _device_errors():
            clips = self.pipeline.generate_clips(
                inputs_of(request),
                request.params,
                first_clip=request.first_clip,
                motion_frames=np.load(request.motion) if request.motion else None,
                on_progress=on_progress,
            )
            for clip in clips:
                yield PipelineClip(clip)

    def finish(
        self, request: RenderRequest, clips: Sequence[Path], video: Path, poster: Path
    ) -> FinishedVideo:
        join_clips(clips, request.audio, video)
        iio.imwrite(poster, iio.imread(video, index=0, plugin="pyav"), extension=".jpg", quality=90)
        num_frames = iio.improps(video, plugin="pyav").shape[0]
        return FinishedVideo(duration_s=num_frames / FPS)

    def release(self) -> None:
        gc.collect()  # an aborted attempt's traceback holds tensors in reference cycles
        if self._on_gpu:
            torch.cuda.empty_cache()


@contextmanager
def _device_errors() -> Iterator[None]:
    """Translate torch's exceptions. They are named nowhere else, so that the fault tests need no torch."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory(str(error).splitlines()[0] if str(error) else "out of memory") from error
    except torch.AcceleratorError as error:
        raise DeviceFailed(str(error)) from error
