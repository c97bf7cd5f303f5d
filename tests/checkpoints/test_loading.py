"""Loading a checkpoint folder in each memory mode."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from contract.memory import MemoryMode
from contract.params import GenerationParams
from model.checkpoints.load import load_pipeline
from model.checkpoints.tiny import write_tiny_checkpoint
from model.inputs import VideoInputs
from model.pipeline import Clip, CoInteractPipeline

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_checkpoint(folder)
    return folder


def two_clips(pipeline: CoInteractPipeline) -> list[Clip]:
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    speech = np.random.default_rng(1).normal(size=16_000 * 4).astype(np.float32)
    return list(
        pipeline.generate_clips(
            VideoInputs(photo, speech, product_image=photo),
            GenerationParams(
                prompts=("one", "two"),
                negative_prompt="blurry",
                width=64,
                height=64,
                num_inference_steps=2,
                guidance_scale=3.0,
                flow_shift=5.0,
                product_scale=1.0,
                seed=1,
                num_clips=2,
                num_frames=100,
            ),
        )
    )


@pytest.fixture(scope="module")
def resident_clips(tiny: Path) -> list[Clip]:
    return two_clips(load_pipeline(tiny, memory=MemoryMode.RESIDENT))


@pytest.mark.parametrize("mode", [MemoryMode.TEXT_OFFLOAD, MemoryMode.OFFLOAD])
def test_streaming_weights_changes_no_pixel(mode: MemoryMode, tiny: Path, resident_clips: list[Clip]) -> None:
    clips = two_clips(load_pipeline(tiny, memory=mode))
    assert len(clips) == len(resident_clips) == 2
    for clip, expected in zip(clips, resident_clips, strict=True):
        torch.testing.assert_close(clip.latents, expected.latents, rtol=0, atol=1e-5)
        assert (clip.frames != expected.frames).mean() < 0.001


def test_loading_tells_its_time_mode_and_peak_memory(tiny: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="model.checkpoints.load"):
        load_pipeline(tiny)
    (record,) = [record for record in caplog.records if record.name == "model.checkpoints.load"]
    assert "mode resident, peak" in record.message
    assert " s, " in record.message


def test_weights_are_not_copied_into_memory_when_the_type_is_the_stored_one(tiny: Path) -> None:
    pipeline = load_pipeline(tiny, dtype=torch.float32)
    mapped = {
        line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "safetensors" in line
    }
    assert any(path.startswith(str(tiny / "transformer")) for path in mapped)
    assert pipeline.transformer.dtype == torch.float32
