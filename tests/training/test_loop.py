"""Training runs: they learn, they resume to the bit, they leave a checkpoint that the service can load."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import save_file

from contract.card import CARD_FILE
from model.checkpoints.card_file import read_card
from model.checkpoints.load import load_pipeline
from model.checkpoints.tiny import TINY_AUDIO_DIM, TINY_TEXT_DIM, write_tiny_checkpoint
from training.batches import draw_batch, draw_levels
from training.branches import is_expert, is_hoi, with_hoi_branch
from training.cache import FIRST_SUFFIX, MOTION_SUFFIX, ClipCache
from training.clips import EncodedClip
from training.loop import (
    MOST_SKIPPED,
    Step,
    TrainingDiverged,
    TrainingRun,
    learning_rate,
    train,
)
from training.recipe import Dropouts, TrainRecipe

pytestmark = pytest.mark.slow

H, W = 8, 8


@pytest.fixture(autouse=True)
def fresh_accelerator_state() -> Iterator[None]:
    """accelerate keeps the precision of a process's first run; ours are many in one process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    write_tiny_checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    for number in range(3):
        for suffix in (MOTION_SUFFIX, FIRST_SUFFIX):
            clip = EncodedClip(
                target=noise(16, 20, H, W),
                motion=noise(16, 19, H, W) if suffix == MOTION_SUFFIX else None,
                person=noise(16, 1, H, W),
                product=noise(16, 1, H, W),
                hoi=noise(16, 20, H, W),
                pose=None,
                prompt_embeds=noise(5 + number, TINY_TEXT_DIM),
                hoi_prompt_embeds=noise(9, TINY_TEXT_DIM),
                audio=noise(25, TINY_AUDIO_DIM, 80),
                labels=torch.randint(0, 3, (20, H // 2, W // 2), generator=generator).byte(),
            )
            clip.save(folder / f"{number:06d}{suffix}")
    save_file(
        {"prompt": noise(1, TINY_TEXT_DIM), "hoi_prompt": noise(8, TINY_TEXT_DIM)},
        folder / "empty-prompt.safetensors",
    )
    return folder


def recipe(base: Path, clips: Path, output: Path, **changes: object) -> TrainRecipe:
    settings = {
        "base": base, "cache": clips, "output": output, "width": 64, "height": 64, "steps": 4, "batch":
        2, "window": 3, "lora_rank": "full", "learning_rate": 1e-3, "warmup_steps": 1, "log_every": 1,
    }  # fmt: skip
    return TrainRecipe.model_validate({**settings, **changes})


def test_a_resumed_run_repeats_the_losses_of_an_unbroken_one(base: Path, clips: Path, tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    unbroken: list[Step] = []
    train(recipe(base, clips, tmp_path / "whole", optimizer="muon", steps=3), on_step=unbroken.append)

    broken: list[Step] = []

    def stop_in_second_step(step: Step) -> None:
        if step.step == 1:
            raise Stopped
        broken.append(step)

    halves = recipe(base, clips, tmp_path / "halves", optimizer="muon", steps=3, save_minutes=0)
    with pytest.raises(Stopped):
        train(halves, on_step=stop_in_second_step)
    train(halves, resume=True, on_step=broken.append)
    assert [step.step for step in broken] == [0, 1, 2]
    assert [(s.loss, s.rgb, s.hoi) for s in broken] == [(s.loss, s.rgb, s.hoi) for s in unbroken]
    assert len({s.loss for s in unbroken}) == 3
    curves = [
        [json.loads(line)["step"] for line in (tmp_path / run / "curve.jsonl").read_text().splitlines()]
        for run in ("whole", "halves")
    ]
    assert curves == [[0, 1, 2]] * 2, "the step that was lost is logged once"


def test_the_checkpoint_is_rgb_only_trained_and_loads(base: Path, clips: Path, tmp_path: Path) -> None:
    folder = train(recipe(base, clips, tmp_path / "run", steps=2))
    pipeline = load_pipeline(folder)
    assert not any(is_hoi(name) for name in pipeline.transformer.state_dict())
    before = load_pipeline(base).transformer.state_dict()
    assert not torch.equal(pipeline.transformer.state_dict()["proj_out.weight"], before["proj_out.weight"])
    assert read_card(folder).trained
    curve = [json.loads(line) for line in (tmp_path / "run" / "curve.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in curve] == [0, 1]
    assert list((tmp_path / "run").rglob("events.out.tfevents*"))


def test_lora_changes_only_what_it_targets_and_is_merged_into_the_checkpoint(
    base: Path, clips: Path, tmp_path: Path
) -> None:
    folder = train(recipe(base, clips, tmp_path / "run", steps=3, lora_rank=4, learning_rate=1e-2, ema=0.0))
    after, before = (
        load_pipeline(folder).transformer.state_dict(),
        load_pipeline(base).transformer.state_dict(),
    )
    assert after.keys() == before.keys()
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert "blocks.0.attn1.to_q.weight" in moved
    assert "blocks.2.ffn.net.2.weight" in moved
    for name in moved:
        adapted = any(
            part in name for part in ("attn1.to_", "attn2.to_", "audio_injection.attn.to_", "ffn.net")
        )
        assert is_expert(name) or (adapted and name.endswith("weight")), name


def test_lora_on_bf16_weights_trains_in_fp32(base: Path, clips: Path, tmp_path: Path) -> None:
    steps: list[Step] = []
    settings = recipe(
        base, clips, tmp_path / "run", steps=2, lora_rank=4, frozen_weights="bf16", mixed_precision="bf16"
    )
    folder = train(settings, on_step=steps.append)
    assert all(np.isfinite(step.loss) for step in steps)
    assert load_pipeline(folder).transformer.state_dict()["proj_out.weight"].shape[0] == 64


def test_gradient_checkpointing_gives_the_same_losses(base: Path, clips: Path, tmp_path: Path) -> None:
    runs: dict[bool, list[Step]] = {False: [], True: []}
    for checkpointing, steps in runs.items():
        settings = recipe(
            base, clips, tmp_path / str(checkpointing), steps=2, gradient_checkpointing=checkpointing
        )
        train(settings, on_step=steps.append)
    assert [s.loss for s in runs[True]] == pytest.approx([s.loss for s in runs[False]], rel=1e-4)


def test_a_checkpoint_can_be_read_by_whoever_may_read_its_card(
    base: Path, clips: Path, tmp_path: Path
) -> None:
    folder = train(recipe(base, clips, tmp_path / "run", steps=1))
    modes = {path.stat().st_mode for path in folder.rglob("*.safetensors")}
    assert modes == {(folder / CARD_FILE).stat().st_mode}


def test_without_experts_and_hoi_stream_neither_is_touched(base: Path, clips: Path, tmp_path: Path) -> None:
    steps: list[Step] = []
    settings = recipe(base, clips, tmp_path / "run", steps=2, experts=False, hoi_weight=0, first_stage=0)
    folder = train(settings, on_step=steps.append)
    assert steps[0].hoi is None
    assert steps[0].routing is None
    after, before = (
        load_pipeline(folder).transformer.state_dict(),
        load_pipeline(base).transformer.state_dict(),
    )
    assert all(torch.equal(after[name], before[name]) for name in after if is_expert(name))


def test_dropouts_leave_conditions_out_as_often_as_asked(base: Path, clips: Path, tmp_path: Path) -> None:
    cache = ClipCache(clips)
    settings = recipe(
        base, clips, tmp_path, dropouts=Dropouts(prompt=0.25, motion=0.4, audio=0.25, pose=0.5), batch=4
    )
    batches = [draw_batch(settings, cache, np.random.default_rng(i), 0.0) for i in range(150)]
    assert np.mean([batch.motion is None for batch in batches]) == pytest.approx(0.4, abs=0.1)
    silent = torch.cat([batch.audio.flatten(1).abs().amax(dim=1) == 0 for batch in batches])
    assert silent.float().mean().item() == pytest.approx(0.25, abs=0.06)
    empty = torch.cat([(batch.prompt_embeds[:, 1:].abs().amax(dim=(1, 2)) == 0) for batch in batches])
    assert empty.float().mean().item() == pytest.approx(0.25, abs=0.06)


def test_whole_clips_come_in_smaller_batches_once_the_windows_end(
    base: Path, clips: Path, tmp_path: Path
) -> None:
    cache = ClipCache(clips)
    settings = recipe(base, clips, tmp_path, window=5, batch=4, whole_clips_from=0.6, whole_batch=2)
    before, after = (draw_batch(settings, cache, np.random.default_rng(0), share) for share in (0.59, 0.6))
    assert before.target.shape[:3] == (4, 16, 5)
    assert after.target.shape[:3] == (2, 16, 20)
    assert len(after.prompt_embeds) == len(after.audio) == 2


def test_motion_fades_into_the_photo_and_noise_by_up_to_the_share_asked_for(
    base: Path, clips: Path, tmp_path: Path
) -> None:
    cache = ClipCache(clips)

    def motion(fade: float, seed: int) -> torch.Tensor:
        settings = recipe(base, clips, tmp_path, motion_fade=fade, dropouts=Dropouts(motion=0.0), batch=1)
        drawn = draw_batch(settings, cache, np.random.default_rng(seed), 0.0).motion
        assert drawn is not None
        return drawn.flatten().double()

    whole = torch.stack([motion(0.0, seed) for seed in range(40)])
    faded = torch.stack([motion(0.6, seed) for seed in range(40)])
    kept = (whole * faded).sum(dim=1) / (whole * whole).sum(dim=1)  # photo and noise are independent of it
    assert kept.min().item() == pytest.approx(0.45, abs=0.05)
    assert 0.9 < kept.max().item() < 1.02


def test_noise_levels_cover_the_schedule_evenly() -> None:
    levels = draw_levels(np.random.default_rng(0), 8)
    assert [int(level) // 125 for level in levels] == list(range(8))


def test_learning_rate_warms_up_and_falls(base: Path, clips: Path, tmp_path: Path) -> None:
    settings = recipe(base, clips, tmp_path, steps=100, warmup_steps=10, learning_rate=1.0, final_rate=0.1)
    rates = [learning_rate(settings, step, step / 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1, abs=0.01)
    assert np.argmax(rates) == 9
    assert rates[-1] == pytest.approx(0.1, abs=0.01)


def test_new_hoi_parts_start_as_the_videos_own(base: Path) -> None:
    transformer = load_pipeline(base).transformer
    grown = with_hoi_branch(transformer)
    assert torch.equal(grown.hoi_patch_embedding.weight, transformer.patch_embedding.weight)
    assert grown.hoi_patch_embedding.weight.data_ptr() != grown.patch_embedding.weight.data_ptr()
    assert with_hoi_branch(grown) is grown


def test_a_recipe_with_an_unknown_name_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text('base = "a"\ncache = "b"\noutput = "c"\nlearning_speed = 1.0\n')
    with pytest.raises(ValueError, match="learning_speed"):
        TrainRecipe.read(file)
    file.write_text('base = "a"\ncache = "b"\noutput = "c"\n')
    assert TrainRecipe.read(file).base == tmp_path / "a"


@pytest.fixture
def poisoned(clips: Path, tmp_path: Path) -> Path:
    """Clips of which one in three makes every loss NaN."""
    folder = tmp_path / "poisoned"
    shutil.copytree(clips, folder)
    for suffix in (MOTION_SUFFIX, FIRST_SUFFIX):
        path = next(iter(sorted(folder.glob(f"*{suffix}"))))
        clip = EncodedClip.load(path)
        replace(clip, target=clip.target * torch.nan).save(path)
    return folder


def test_a_step_without_finite_gradients_leaves_the_weights_alone(
    base: Path, poisoned: Path, tmp_path: Path
) -> None:
    steps: list[Step] = []
    settings = recipe(base, poisoned, tmp_path / "run", batch=1, steps=12, window=1)
    folder = train(settings, on_step=steps.append)
    assert {step.skipped for step in steps} == {True, False}
    assert all(step.skipped == (not np.isfinite(step.loss)) for step in steps)
    for weight in load_pipeline(folder).transformer.parameters():
        assert torch.isfinite(weight).all()
    curve = [json.loads(line) for line in (tmp_path / "run" / "curve.jsonl").read_text().splitlines()]
    assert [entry["loss"] is None for entry in curve] == [step.skipped for step in steps]


@pytest.mark.parametrize("steps", [3, 30])
def test_a_run_without_finite_gradients_stops_and_writes_no_weights(
    base: Path, poisoned: Path, tmp_path: Path, steps: int
) -> None:
    for path in poisoned.glob(f"*{MOTION_SUFFIX}"):
        path.unlink()
    for path in sorted(poisoned.glob(f"*{FIRST_SUFFIX}"))[1:]:
        path.unlink()
    seen: list[Step] = []
    with pytest.raises(TrainingDiverged, match="learning_rate"):
        train(recipe(base, poisoned, tmp_path / "run", steps=steps, window=1), on_step=seen.append)
    assert len(seen) == min(steps, MOST_SKIPPED) - 1
    assert not list((tmp_path / "run").rglob("*.safetensors"))


def test_weights_that_are_no_numbers_are_never_saved(base: Path, clips: Path, tmp_path: Path) -> None:
    run = TrainingRun(recipe(base, clips, tmp_path / "run"))
    run.trained[-1].data.flatten()[0] = torch.inf
    with pytest.raises(TrainingDiverged, match="not saved"):
        run.save()
    assert not list((tmp_path / "run").rglob("*.safetensors"))
