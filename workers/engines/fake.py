"""A fast engine without a network behind the real interface, for fault tests and `cointeract chaos`.

A checkpoint folder with a `fake.json` selects it, so nothing else in the service knows about it. Its clips
depend on the seed, the prompt and the clip before: a wrongly resumed video has other bytes than an unbroken
one. A prompt may order a fault: "fault:kill" (SIGKILL to this process), "fault:gil=3" (hold the interpreter
lock for 3 s), "fault:oom" (out of memory), "fault:tight=1" (out of memory unless the engine runs in the first
memory mode after the fastest, or a later one), "fault:error", "fault:hang".
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from contract.card import CARD_FILE, CheckpointCard, CheckpointDefaults
from contract.devices import CPU_NAME
from contract.frozen import Frozen
from contract.job import OnProgress, Stage
from contract.memory import MemoryMode
from contract.params import GenerationParams
from contract.video import FPS
from workers.engines.engine import ClipFiles, ClipStream, FinishedVideo, OutOfMemory, RenderRequest

FAKE_FILE = "fake.json"
_FAULT = re.compile(r"fault:(?P<kind>kill|gil|oom|tight|error|hang)(=(?P<amount>[\d.]+))?")


class FakeSettings(Frozen):
    seconds_per_step: float = 0.01
    media: bool = True
    """False: a clip is a few synthetic bytes, so that thousands of jobs take no time."""


def write_fake_checkpoint(folder: Path, name: str, settings: FakeSettings) -> CheckpointCard:
    """A checkpoint folder that `FakeEngine` serves."""
    card = CheckpointCard(
        name=name,
        trained=False,
        sizes=("64x64",),
        min_side=32,
        max_pixels=1280 * 1280,
        defaults=CheckpointDefaults(
            num_inference_steps=4, guidance_scale=1.0, flow_shift=7.0, negative_prompt="blurry"
        ),
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CARD_FILE).write_text(card.model_dump_json(indent=1))
    (folder / FAKE_FILE).write_text(settings.model_dump_json())
    return card


def clip_digest(before: bytes, params: GenerationParams, index: int) -> bytes:
    """Identifies a clip. It depends on everything that a wrong resume could get wrong."""
    prompt = params.prompt_of(index)
    return hashlib.sha256(before + f"{params.seed + index} {prompt}".encode()).digest()


def synthetic_clip(index: int, digest: bytes) -> bytes:
    return b"clip %d " % index + digest.hex().encode() + b"\n"


def synthetic_video(params: GenerationParams) -> bytes:
    """The video that an unbroken run without media makes."""
    digest, video = b"", b""
    for index in range(params.num_clips):
        digest = clip_digest(digest, params, index)
        video += synthetic_clip(index, digest)
    return video


@dataclass(frozen=True)
class FakeClip:
    index: int
    digest: bytes
    params: GenerationParams
    media: bool

    def save(self, files: ClipFiles) -> None:
        files.motion.write_bytes(self.digest)
        if self.media:
            from workers.engines.fake_media import encode_colours

            encode_colours(self.params, self.index, self.digest, files)
        else:
            files.video.write_bytes(synthetic_clip(self.index, self.digest))
            files.poster.write_bytes(b"poster of clip %d" % self.index)


class FakeStream:
    """Fragments that are a few synthetic bytes."""

    def write(self, index: int, video: Path, header_path: Path, path: Path) -> None:
        header_path.write_bytes(b"header")
        path.write_bytes(b"fragment of " + video.read_bytes())


class FakeEngine:
    """The engine that the module describes."""

    attention = None
    fp8_compute = False
    device_name = CPU_NAME
    libraries: Mapping[str, str] = MappingProxyType({})

    def __init__(self, settings: FakeSettings, memory_mode: MemoryMode | None = None) -> None:
        self.settings = settings
        self.memory_mode = memory_mode or MemoryMode.RESIDENT
        self.next_memory_mode = self.memory_mode.next

    def render(self, request: RenderRequest, on_progress: OnProgress) -> Iterator[FakeClip]:
        params = request.params
        digest = request.motion.read_bytes() if request.motion else b""
        for index in range(request.first_clip, params.num_clips):
            prompt = params.prompt_of(index)
            on_progress(Stage.ENCODING, index, 0)
            for step in range(1, params.num_inference_steps + 1):
                time.sleep(self.settings.seconds_per_step)
                if step == 1 and (fault := _FAULT.search(prompt)):
                    _commit(fault["kind"], float(fault["amount"] or 1), self.memory_mode)
                on_progress(Stage.DENOISING, index, step)
            digest = clip_digest(digest, params, index)
            on_progress(Stage.DECODING, index, params.num_inference_steps)
            yield FakeClip(index, digest, params, self.settings.media)

    def stream(self, request: RenderRequest) -> ClipStream:
        if self.settings.media:
            from workers.engines.fake_media import ClipStream as MediaStream

            return MediaStream(request.audio, request.params.num_frames)
        return FakeStream()

    def finish(
        self, request: RenderRequest, clips: Sequence[Path], video: Path, poster: Path
    ) -> FinishedVideo:
        params = request.params
        if self.settings.media:
            from workers.engines.fake_media import join

            join(params, clips, request.audio, video, poster)
        else:
            video.write_bytes(b"".join(clip.read_bytes() for clip in clips))
            poster.write_bytes(b"poster")
        return FinishedVideo(duration_s=params.num_frames / FPS)

    def release(self) -> None:
        """Do nothing: it holds nothing between attempts."""


def _commit(kind: str, amount: float, mode: MemoryMode) -> None:
    match kind:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "gil":
            # PyDLL, unlike CDLL, keeps the interpreter lock, so no other Python thread runs meanwhile.
            ctypes.PyDLL(None).usleep(int(amount * 1e6))
        case "oom":
            raise OutOfMemory("tried to allocate 99 GiB")
        case "tight" if list(MemoryMode).index(mode) < amount:
            raise OutOfMemory("tried to allocate 20 GiB")
        case "error":
            raise RuntimeError("this fault was ordered")
        case "hang":
            signal.pause()
