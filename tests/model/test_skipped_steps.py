"""Videos whose steps are partly interpolated: what runs, and that nothing of one clip reaches another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from contract.choices import Preset
from contract.job import Stage
from contract.memory import MemoryMode
from contract.params import GenerationParams
from contract.sampling import even_steps, noise_levels
from model.checkpoints.load import load_pipeline
from model.checkpoints.tiny import tiny_pipeline, write_tiny_checkpoint
from model.inputs import VideoInputs
from model.pipeline import Clip, CoInteractPipeline
from tests.model.test_pipeline import photo, speech

pytestmark = pytest.mark.slow

STEPS = 9
COMPUTED = even_steps(noise_levels(STEPS, 5.0), 1.9)


@pytest.fixture(scope="module")
def pipeline() -> CoInteractPipeline:
    return tiny_pipeline()


def params(computed: tuple[int, ...] | None, clips: int = 1) -> GenerationParams:
    return GenerationParams(
        prompts=("She lifts the cup.", "She turns it."),
        negative_prompt="blurry",
        width=64,
        height=64,
        num_inference_steps=STEPS,
        guidance_scale=3.0,
        flow_shift=5.0,
        product_scale=1.0,
        seed=7,
        num_clips=clips,
        num_frames=80 * clips,
        preset=Preset.EXACT if computed is None else Preset.FAST,
        computed_steps=computed,
    )


def made(
    pipeline: CoInteractPipeline, computed: tuple[int, ...] | None, clips: int = 1, **arguments: object
) -> Iterator[Clip]:
    inputs = VideoInputs(photo(1), speech(3.2 * clips), photo(2))
    return pipeline.generate_clips(inputs, params(computed, clips), **arguments)  # type: ignore[arg-type]


def test_the_network_runs_in_the_computed_steps_only(
    pipeline: CoInteractPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    timesteps: list[float] = []
    original = pipeline.transformer.forward

    def counting(latents: torch.Tensor, timestep: torch.Tensor, *rest: object, **named: object) -> object:
        timesteps.append(float(timestep))
        return original(latents, timestep, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline.transformer, "forward", counting)
    seen: list[tuple[Stage, int, int]] = []
    list(made(pipeline, COMPUTED, on_progress=lambda *at: seen.append(at)))
    levels = noise_levels(STEPS, 5.0)
    assert len(COMPUTED) < STEPS
    assert timesteps[::2] == timesteps[1::2] == pytest.approx([1000 * levels[step] for step in COMPUTED])
    steps = [step for stage, _, step in seen if stage is Stage.DENOISING]
    assert steps == list(range(STEPS + 1)), "every step is told, so that progress never jumps"


def test_computing_every_step_changes_no_bit(pipeline: CoInteractPipeline) -> None:
    exact, all_computed = (next(made(pipeline, steps)) for steps in (None, tuple(range(STEPS))))
    assert torch.equal(exact.latents, all_computed.latents)
    fewer = next(made(pipeline, COMPUTED))
    assert not torch.equal(exact.latents, fewer.latents)
    # Random networks turn the velocity more than trained ones, yet most of it is there.
    error = (fewer.latents - exact.latents).norm() / exact.latents.norm()
    assert error < 0.2


def test_a_canceled_video_leaves_nothing_in_the_next_one(pipeline: CoInteractPipeline) -> None:
    expected = next(made(pipeline, COMPUTED)).latents

    class Canceled(Exception):
        pass

    for cancel_at in (COMPUTED[1] + 1, STEPS - 1):

        def cancel(stage: Stage, clip: int, step: int, at: int = cancel_at) -> None:
            if stage is Stage.DENOISING and step == at:
                raise Canceled

        with pytest.raises(Canceled):
            list(made(pipeline, COMPUTED, clips=2, on_progress=cancel))
        assert torch.equal(next(made(pipeline, COMPUTED)).latents, expected)
    # Nor does a video of another kind: later clips have other tokens than first ones.
    list(made(pipeline, None, clips=2))
    assert torch.equal(next(made(pipeline, COMPUTED)).latents, expected)


def test_continuing_behind_a_clip_gives_the_same_bits(pipeline: CoInteractPipeline) -> None:
    whole = list(made(pipeline, COMPUTED, clips=2))
    (resumed,) = made(pipeline, COMPUTED, clips=2, first_clip=1, motion_frames=whole[0].motion_frames)
    assert np.array_equal(resumed.frames, whole[1].frames)


@pytest.mark.parametrize("mode", [MemoryMode.TEXT_OFFLOAD, MemoryMode.OFFLOAD])
def test_steps_are_skipped_alike_where_weights_stream(mode: MemoryMode, tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path / "tiny", 0)
    resident, streaming = (load_pipeline(tmp_path / "tiny", memory=each) for each in (None, mode))
    assert streaming.streams.mode is mode
    for clips in zip(made(resident, COMPUTED, 2), made(streaming, COMPUTED, 2), strict=True):
        torch.testing.assert_close(clips[0].latents, clips[1].latents, rtol=0, atol=1e-5)
    assert streaming.streams.text_encoder is not None
    assert streaming.streams.text_encoder._places == [], "nothing of it stays on the device between uses"
