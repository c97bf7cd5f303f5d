"""The real engine: the CoInteract pipeline, on one device or as the first of several ranks."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import imageio.v3 as iio
import torch

from contract.attention import AttentionBackend, AttentionReport
from contract.devices import CPU_NAME
from contract.job import OnProgress
from contract.memory import MemoryMode
from contract.video import CLIP_FRAMES, FPS
from model.attention_choice import choose_attention
from model.checkpoints.card_file import read_card
from model.checkpoints.load import load_pipeline
from model.fp8_choice import choose_fp8
from model.inputs import VideoInputs
from model.media import (
    ClipStream,
    encode_clip,
    join_clips,
    load_audio,
    load_image,
    load_pose,
    read_motion,
    with_label,
    write_motion,
    write_poster,
    write_router_map,
)
from model.memory.needs import tokens
from model.memory.offload import next_mode
from model.parallel.ranks import Place, Ranks
from model.parallel.together import OutOfStep
from model.pipeline import Clip
from model.transformer import CoInteractTransformer3DModel
from workers.engines.engine import ClipFiles, DeviceFailed, FinishedVideo, OutOfMemory, RenderRequest
from workers.messages import ChildConfig

log = logging.getLogger(__name__)

OUT_OF_STEP_PATIENCE_S = 5.0


@dataclass(frozen=True)
class PipelineClip:
    clip: Clip
    label: str = ""

    @property
    def index(self) -> int:
        return self.clip.index

    def save(self, files: ClipFiles) -> None:
        frames = with_label(self.clip.frames, self.label)
        encode_clip(frames, files.video)
        write_poster(frames, files.poster)
        write_motion(self.clip.motion_frames, files.motion)
        if self.clip.routes is not None:
            write_router_map(self.clip.routes, len(self.clip.frames), files.router_map)


def dtype_on(device: str | torch.device) -> torch.dtype:
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
        place: Place | None = None,
        fp8_compute: bool = True,
    ) -> None:
        """Load; with a `place`, that of rank 0, also join the other ranks, which is to wait for them."""
        on = torch.device(device)
        ranks = 1 if place is None else len(place.devices)
        self.pipeline = load_pipeline(folder, device=on, dtype=dtype_on(on), memory=memory_mode, ranks=ranks)
        self._on_gpu = on.type == "cuda"
        self.device_name = torch.cuda.get_device_name(on) if self._on_gpu else CPU_NAME
        self.libraries = library_versions()
        self.memory_mode = self.pipeline.streams.mode
        self.next_memory_mode = next_mode(folder, self.memory_mode, ranks) if self._on_gpu else None
        self._ranks = None if place is None else Ranks(place)
        self.attention = set_attention(self.pipeline.transformer, folder, attention, on)
        self.fp8_compute = choose_fp8(self.pipeline.transformer, fp8_compute, on)

    def render(self, request: RenderRequest, on_progress: OnProgress) -> Iterator[PipelineClip]:
        with _device_errors():
            clips = self.pipeline.generate_clips(
                inputs_of(request),
                request.params,
                first_clip=request.first_clip,
                motion_frames=read_motion(request.motion) if request.motion else None,
                on_progress=on_progress,
                ranks=self._ranks,
            )
            for clip in clips:
                yield PipelineClip(clip, request.params.label)

    def stream(self, request: RenderRequest) -> ClipStream:
        params = request.params
        return ClipStream(
            request.audio, params.num_clips * CLIP_FRAMES if params.parity else params.num_frames
        )

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


def library_versions() -> dict[str, str]:
    """Versions of the packages that decide about a video's bits."""
    found = {name: version(name) for name in ("torch", "diffusers", "transformers", "av")}
    return found | ({"cuda": torch.version.cuda} if torch.version.cuda else {})


def place_of(config: ChildConfig) -> Place | None:
    """Where a process stands among its worker's ranks; None if it is the only one."""
    if config.meeting is None:
        return None
    # The supervisor's watchdog is to act first: it knows which rank is stuck.
    timeout_s = 2 * config.settings.stall_timeout_s
    return Place(config.rank, config.devices, config.meeting, timeout_s)


def set_attention(
    transformer: CoInteractTransformer3DModel, folder: Path, wanted: AttentionBackend, device: torch.device
) -> AttentionReport:
    """Choose the attention backend for the size that the checkpoint in `folder` is made for."""
    width, height = map(int, read_card(folder).sizes[0].split("x"))
    choice = choose_attention(transformer, wanted, tokens(width, height), device, dtype_on(device))
    return choice.report()


@contextmanager
def _device_errors() -> Iterator[None]:
    """Translate torch's exceptions. They are named nowhere else, so that the fault tests need no torch."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory(str(error).splitlines()[0] if str(error) else "out of memory") from error
    except torch.AcceleratorError as error:
        raise DeviceFailed(str(error)) from error
    except OutOfStep as error:
        # Most often another rank is gone. The supervisor knows which, and ends this process meanwhile.
        time.sleep(OUT_OF_STEP_PATIENCE_S)
        raise DeviceFailed(f"the ranks lost each other: {error}") from error
