"""Co-generation training on accelerate: any device, any number of them, resumable to the bit.

Everything random in a step is drawn from (seed, step, process), so a resumed run takes the same steps.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration
from diffusers.training_utils import EMAModel

from model.checkpoints.card_file import read_card
from model.checkpoints.load import DTYPES, load_pipeline
from model.pipeline import CoInteractPipeline
from model.training_schedule import training_schedule
from model.transformer import CoInteractTransformer3DModel

from .branches import choose_trained, with_hoi_branch
from .cache import EMPTY_PROMPT, ClipCache, fill_cache, stack
from .clips import ClipEncoder, EncodedClip
from .dataset import CsvDataset, Needs
from .export import export_checkpoint, trained_card
from .fingerprint import clip_name, encoders_digest
from .objective import Batch, CoGeneration, Losses, LossWeights
from .padded_prompts import pad_prompts, use_short_prompts
from .recipe import TrainRecipe
from .saves import begin, forget_old, point, publish, saved_steps, step_folder

log = logging.getLogger(__name__)

OnClip = Callable[[int, int], None]
"""Told how many of the clips are encoded, and how many there are."""
STATES, CHECKPOINTS, CHECKPOINT = "state", "checkpoints", "checkpoint"
MOST_SKIPPED = 10
"""So many steps in a row without finite gradients end a run."""


class TrainingDiverged(ArithmeticError):
    """Gradients or weights are no longer finite numbers, so nothing worth keeping can come of the run."""


@dataclass(frozen=True)
class Step:
    """The report of one step. `share` is how much of the run is done, 0..1."""

    step: int
    share: float
    loss: float
    rgb: float
    hoi: float | None
    routing: float | None
    routing_accuracy: float | None
    learning_rate: float
    seconds: float
    skipped: bool
    """The gradients were not finite numbers, so the weights stayed as they were."""


@dataclass
class _Progress:
    """What a resumed run continues from, besides weights and optimisers."""

    step: int = 0
    seconds: float = 0.0
    skipped_in_a_row: int = 0

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


def train(
    recipe: TrainRecipe,
    *,
    resume: bool = False,
    on_step: Callable[[Step], None] | None = None,
    on_clip: OnClip | None = None,
) -> Path:
    """Run a recipe and return the folder of the pruned, RGB-only checkpoint.

    Writes to `recipe.output`: curve.jsonl and tensorboard/, state/ (to resume from), checkpoints/ (the
    moving average of the weights, LoRA merged, HOI stream pruned) and `checkpoint`, a link to the newest.

    Raises:
        FileNotFoundError: no checkpoint in `base`, no clips in `cache`, nothing to resume from.
        FileExistsError: `output` holds a run, and `resume` is not set.
        ValueError: the data do not fit the recipe.
        TrainingDiverged: the weights or ten steps' gradients in a row are not finite. What was saved before
            stays.
    """
    if holds_run(recipe.output) and not resume:
        raise FileExistsError(
            f"{recipe.output} holds a run already. Go on with --resume, or name another output in the recipe"
        )
    run = TrainingRun(recipe, on_clip)
    if resume:
        run.resume()
    progress = run.progress
    started, saved = time.monotonic() - progress.seconds, time.monotonic()
    with (recipe.output / "curve.jsonl").open("a" if resume else "w") as curve:
        while (share := run_share(recipe, progress.step, time.monotonic() - started)) < 1:
            report = run.step(share)
            if report.step % recipe.log_every == 0 and run.accelerator.is_main_process:
                known = {name: value for name, value in vars(report).items() if _is_known(value)}
                curve.write(json.dumps({name: known.get(name) for name in vars(report)}) + "\n")
                curve.flush()
                run.accelerator.log(known, step=report.step)
            if on_step is not None:
                on_step(report)
            progress.step += 1
            progress.seconds = time.monotonic() - started
            if time.monotonic() - saved > 60 * recipe.save_minutes:
                run.save()
                run.cache.refresh()
                saved = time.monotonic()
    folder = run.save()
    run.accelerator.end_training()
    return folder


class TrainingRun:
    """The networks, optimisers and clips of one training run."""

    def __init__(self, recipe: TrainRecipe, on_clip: OnClip | None = None) -> None:
        self.recipe = recipe
        self.accelerator = _make_accelerator(recipe)
        self.pipeline = load_pipeline(recipe.base, "cpu", DTYPES[recipe.frozen_weights])
        self.cache = _prepare_cache(recipe, self.pipeline, self.accelerator, on_clip)
        self.transformer = _prepare_transformer(recipe, self.pipeline)
        self.model = CoGeneration(
            self.transformer,
            training_schedule(recipe.flow_shift),
            LossWeights(
                hoi=recipe.hoi_weight,
                routing=recipe.routing_weight if recipe.experts else 0.0,
                details=recipe.detail_weight,
            ),
            audio_face_mask=recipe.audio_face_mask,
        )
        self.trained = [weight for weight in self.transformer.parameters() if weight.requires_grad]
        self.optimizers = [
            self.accelerator.prepare(optimizer) for optimizer in make_optimizers(self.transformer, recipe)
        ]
        self.prepared = self.accelerator.prepare(self.model)
        self.average = EMAModel(self.trained, decay=recipe.ema, use_ema_warmup=True, power=0.75)
        self.average.to(self.accelerator.device)
        self.progress = _Progress()
        self.accelerator.register_for_checkpointing(self.progress, self.average)

    def resume(self) -> None:
        """Go on from the last save. Raises FileNotFoundError if there is none."""
        output = self.recipe.output
        saves = saved_steps(output / STATES)
        if not saves:
            raise FileNotFoundError(f"{output} holds no state to resume from")
        self.accelerator.load_state(str(saves[-1]))
        if self.accelerator.is_main_process:
            _forget_steps_from(self.progress.step, output / "curve.jsonl")

    def step(self, share: float) -> Step:
        """One update of the weights and of their moving average."""
        recipe, step = self.recipe, self.progress.step
        self.model.visibility = "mutual" if share < recipe.first_stage else "asymmetric"
        rate = learning_rate(recipe, step, share)
        began = time.monotonic()
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        for part in range(recipe.gradient_accumulation):
            losses, finite = self._accumulate(step, part, share)
        if finite:
            self.average.step(self.trained)
            self.progress.skipped_in_a_row = 0
        else:
            self._count_skipped(step)
        return _report(losses, step, share, rate, time.monotonic() - began, skipped=not finite)

    def _count_skipped(self, step: int) -> None:
        self.progress.skipped_in_a_row += 1
        log.warning("step %d is skipped: its gradients are not finite numbers", step)
        if self.progress.skipped_in_a_row >= min(MOST_SKIPPED, self.recipe.steps):
            raise TrainingDiverged(
                f"the gradients of {self.progress.skipped_in_a_row} steps in a row, up to step {step}, are "
                'not finite numbers. Try a smaller learning_rate, or mixed_precision = "no"'
            )

    def _accumulate(self, step: int, part: int, share: float) -> tuple[Losses, bool]:
        """The losses of one batch, and whether the gradients are finite.

        The weights change at the last batch of a step, unless its gradients are not finite. All processes
        hold the same gradients, and so agree.
        """
        recipe, accelerator = self.recipe, self.accelerator
        rng = np.random.default_rng([recipe.seed, step, part, accelerator.process_index])
        batch = draw_batch(recipe, self.cache, rng, share)
        generator = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
        noise = torch.randn(batch.target.shape, generator=generator)
        hoi_noise = None if batch.hoi is None else torch.randn(batch.hoi.shape, generator=generator)
        with accelerator.accumulate(self.prepared), accelerator.autocast():
            losses: Losses = self.prepared(
                batch.to(accelerator.device),
                draw_levels(rng, len(batch.target)),
                noise.to(accelerator.device),
                None if hoi_noise is None else hoi_noise.to(accelerator.device),
            )
            accelerator.backward(losses.total)
            finite = True
            if accelerator.sync_gradients:
                norm = accelerator.clip_grad_norm_(self.trained, recipe.gradient_clip)
                finite = bool(torch.isfinite(torch.as_tensor(norm)))
            for optimizer in self.optimizers:
                if finite:
                    optimizer.step()
                optimizer.zero_grad()
        return losses, finite

    def save(self) -> Path:
        """Write the state to resume from, and the averaged, pruned checkpoint.

        The checkpoint's card says that it is trained, and from what.

        Raises:
            TrainingDiverged: a weight is not finite. Nothing is written then.
        """
        if not all_finite(*self.trained, *self.average.shadow_params):
            raise TrainingDiverged(
                f"after {self.progress.step} steps the weights are not finite numbers, and are not saved. "
                "Try a smaller learning_rate"
            )
        self._save_state()
        link = self.recipe.output / CHECKPOINT
        if self.accelerator.is_main_process:
            folder = step_folder(self.recipe.output / CHECKPOINTS, self.progress.step)
            partial = begin(folder)
            self._export(partial)
            publish(partial, folder)
            point(link, folder)
            forget_old(folder.parent)
        self.accelerator.wait_for_everyone()
        return link

    def _save_state(self) -> None:
        """Every process writes its part of the state; the main one puts the whole in its place."""
        folder = step_folder(self.recipe.output / STATES, self.progress.step)
        main, partial = self.accelerator.is_main_process, folder.with_name(f".{folder.name}.partial")
        if main:
            begin(folder)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(partial))
        self.accelerator.wait_for_everyone()
        if main:
            publish(partial, folder)
            forget_old(folder.parent)

    def _export(self, folder: Path) -> None:
        """Write the averaged, pruned checkpoint into a folder."""
        recipe = self.recipe
        card = trained_card(
            read_card(recipe.base), recipe, steps=self.progress.step, clips=self.cache.num_clips
        )
        self.average.store(self.trained)
        self.average.copy_to(self.trained)
        export_checkpoint(folder, self.pipeline, self.transformer, card, DTYPES[recipe.stored_weights])
        self.average.restore(self.trained)


def holds_run(output: Path) -> bool:
    """Whether a folder holds a run that was saved at least once."""
    return bool(saved_steps(output / STATES)) or (output / CHECKPOINT).exists()


def _make_accelerator(recipe: TrainRecipe) -> Accelerator:
    accelerator = Accelerator(
        mixed_precision=recipe.mixed_precision,
        gradient_accumulation_steps=recipe.gradient_accumulation,
        log_with="tensorboard",
        # Steps without the HOI stream, or above the routing limit, give some weights no gradients.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        project_config=ProjectConfiguration(project_dir=str(recipe.output), logging_dir=str(recipe.output)),
    )
    recipe.output.mkdir(parents=True, exist_ok=True)
    accelerator.init_trackers("tensorboard")
    return accelerator


def _prepare_transformer(recipe: TrainRecipe, pipeline: CoInteractPipeline) -> CoInteractTransformer3DModel:
    """The network, in which the weights that the recipe trains require gradients."""
    transformer = with_hoi_branch(pipeline.transformer) if recipe.hoi_weight else pipeline.transformer
    transformer.train()
    choose_trained(transformer, recipe.lora_rank, recipe.experts, recipe.hoi_weight > 0)
    for weight in transformer.parameters():
        if weight.requires_grad or weight.ndim < 2:  # norms run in fp32 under autocast
            weight.data = weight.data.float()
    if recipe.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    use_short_prompts(transformer)
    return transformer


def run_share(recipe: TrainRecipe, step: int, seconds: float) -> float:
    """How much of the run is done: by steps, or by wall clock if that is further along."""
    by_time = 0.0 if recipe.minutes is None else seconds / (60 * recipe.minutes)
    return min(1.0, max(step / recipe.steps, by_time))


def learning_rate(recipe: TrainRecipe, step: int, share: float) -> float:
    """Linear warm-up, then a cosine down to `final_rate` of the full rate."""
    fall = recipe.final_rate + (1 - recipe.final_rate) * 0.5 * (1 + math.cos(math.pi * share))
    return recipe.learning_rate * fall * min(1.0, (step + 1) / max(1, recipe.warmup_steps))


def make_optimizers(
    transformer: CoInteractTransformer3DModel, recipe: TrainRecipe
) -> list[torch.optim.Optimizer]:
    """AdamW, or Muon on the matrices of blocks with AdamW on everything else."""
    named = [(name, weight) for name, weight in transformer.named_parameters() if weight.requires_grad]
    if recipe.optimizer == "adamw":
        return [
            torch.optim.AdamW(
                [w for _, w in named], lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=0.01
            )
        ]
    matrices = [w for name, w in named if name.startswith("blocks.") and w.ndim == 2 and "router" not in name]
    chosen = {id(w) for w in matrices}
    rest = [w for _, w in named if id(w) not in chosen]
    return [
        torch.optim.Muon(
            matrices, lr=recipe.learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(rest, lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=0.01),
    ]


def draw_batch(recipe: TrainRecipe, cache: ClipCache, rng: np.random.Generator, share: float) -> Batch:
    """Random clips of the cache with the recipe's dropouts, all with or all without motion."""
    whole = recipe.window is None or share >= recipe.whole_clips_from
    count = recipe.whole_batch if whole and recipe.whole_batch else recipe.batch
    after_motion = bool(cache.after_motion) and (not cache.first or rng.random() >= recipe.dropouts.motion)
    paths = cache.after_motion if after_motion else cache.first
    clips = [cache.load(paths[i]) for i in rng.integers(len(paths), size=count)]
    scales = {clip.product_scale for clip in clips}
    if len(scales) > 1:
        raise ValueError(
            f"clips of product scales {sorted(scales)} cannot share a batch; set batch = 1 and accumulate"
        )
    frames = clips[0].target.shape[1]
    length = frames if whole or recipe.window is None else min(recipe.window, frames)
    start = int(rng.integers(frames - length + 1))
    window = slice(start, start + length)

    no_prompt = rng.random(count) < recipe.dropouts.prompt
    no_audio = torch.from_numpy(rng.random(count) < recipe.dropouts.audio)
    prompts = [
        cache.empty_prompt if none else clip.prompt_embeds
        for none, clip in zip(no_prompt, clips, strict=True)
    ]
    audio = torch.stack([clip.audio for clip in clips]) * ~no_audio.view(-1, 1, 1, 1)
    hoi = (
        stack([clip.hoi for clip in clips]) if recipe.hoi_weight and rng.random() < recipe.hoi_share else None
    )
    labels = stack([clip.labels for clip in clips]) if recipe.experts or recipe.detail_weight != 1 else None
    objects = stack([clip.objects for clip in clips]) if recipe.detail_weight != 1 else None
    pose = None if rng.random() < recipe.dropouts.pose else stack([clip.pose for clip in clips])
    hoi_prompts = None
    if hoi is not None:
        hoi_prompts = pad_prompts(
            [
                cache.empty_hoi_prompt if none else clip.hoi_prompt_embeds
                for none, clip in zip(no_prompt, clips, strict=True)
            ]
        )
    return Batch(
        target=torch.stack([clip.target for clip in clips])[:, :, window],
        person=torch.stack([clip.person for clip in clips]),
        product=stack([clip.product for clip in clips]),
        motion=_faded_motion(clips, recipe.motion_fade, rng) if after_motion else None,
        pose=pose,
        hoi=None if hoi is None else hoi[:, :, window],
        prompt_embeds=pad_prompts(prompts),
        hoi_prompt_embeds=hoi_prompts,
        audio=audio,
        labels=None if labels is None else labels[:, window],
        objects=None if objects is None else objects[:, window],
        product_scale=scales.pop(),
        start=start,
        clip_latent_frames=frames,
    )


def _faded_motion(clips: Sequence[EncodedClip], most: float, rng: np.random.Generator) -> torch.Tensor | None:
    """Motion latents (B, 16, 19, h, w). In each clip photo and noise replace a random share, up to `most`."""
    motion = stack([clip.motion for clip in clips])
    if motion is None or most == 0:
        return motion
    photo = torch.stack([clip.person for clip in clips])  # (B, 16, 1, h, w)
    noise = torch.from_numpy(rng.standard_normal(motion.shape, np.float32))
    fade, grain = torch.from_numpy(rng.random((2, len(clips), 1, 1, 1, 1)).astype(np.float32)) * (most / 2)
    faded: torch.Tensor = motion * (1 - fade - grain) + photo * fade + noise * grain
    return faded


def all_finite(*tensors: torch.Tensor) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def draw_levels(rng: np.random.Generator, count: int, levels: int = 1000) -> torch.Tensor:
    """Draw one noise level from each of `count` equal parts of the schedule.

    The levels are uniform, and vary less from batch to batch than independent ones.
    """
    return torch.from_numpy(((np.arange(count) + rng.random(count)) / count * levels).astype(np.int64))


def _is_known(value: float | None) -> bool:
    """JSON and tensorboard have no place for NaN."""
    return value is not None and math.isfinite(value)


def _forget_steps_from(step: int, curve: Path) -> None:
    """Delete the log of steps after the last save. The stopped run lost them, and takes them again."""
    lines = curve.read_text(encoding="utf-8").splitlines(keepends=True) if curve.exists() else []
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] < step]
    curve.write_text("".join(kept), encoding="utf-8")


def _prepare_cache(
    recipe: TrainRecipe, pipeline: CoInteractPipeline, accelerator: Accelerator, on_clip: OnClip | None
) -> ClipCache:
    if recipe.data is None:
        return ClipCache(recipe.cache)
    clips = CsvDataset(recipe.data, recipe.width, recipe.height, needs_of(recipe))
    if recipe.batch > 1 and (unlike := clips.unlike()):
        raise ValueError(f"{unlike[0]}: such clips cannot share a batch. Set batch = 1 and accumulate")
    return encode_table(recipe, clips, pipeline, accelerator, on_clip)


def encode_table(
    recipe: TrainRecipe,
    clips: CsvDataset,
    pipeline: CoInteractPipeline,
    accelerator: Accelerator,
    on_clip: OnClip | None,
) -> ClipCache:
    """Encode what is not in the cache yet; each process takes its share of the rows."""
    encoders = encoders_digest(recipe.base)
    names = [clip_name(encoders, clips.digest(index)) for index in range(len(clips))]
    empty = f"{encoders[:32]}-{EMPTY_PROMPT}"
    pipeline.to(accelerator.device)
    fill_cache(
        recipe.cache,
        clips,
        ClipEncoder(pipeline, accelerator.device),
        range(accelerator.process_index, len(clips), accelerator.num_processes),
        name=names.__getitem__,
        empty=empty,
        workers=recipe.workers,
        on_clip=on_clip,
    )
    pipeline.to("cpu")
    accelerator.wait_for_everyone()
    return ClipCache(recipe.cache, names, empty)


def needs_of(recipe: TrainRecipe) -> Needs:
    """What the recipe's losses need of every row."""
    boxes = (recipe.experts and recipe.routing_weight > 0) or recipe.detail_weight != 1
    return Needs(hoi=recipe.hoi_weight > 0 and recipe.hoi_share > 0, boxes=boxes)


def _report(losses: Losses, step: int, share: float, rate: float, seconds: float, *, skipped: bool) -> Step:
    def number(value: torch.Tensor | None) -> float | None:
        return None if value is None else round(value.item(), 5)

    return Step(
        step=step,
        share=round(share, 4),
        loss=round(losses.total.item(), 5),
        rgb=round(losses.rgb.item(), 5),
        hoi=number(losses.hoi),
        routing=number(losses.routing),
        routing_accuracy=number(losses.routing_accuracy),
        learning_rate=rate,
        seconds=round(seconds, 3),
        skipped=skipped,
    )
