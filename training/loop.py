"""Co-generation training on accelerate: any device, any number of them, resumable to the bit.

Everything random in a step is drawn from (seed, step, process), so a resumed run takes the same steps.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration, broadcast
from diffusers.training_utils import EMAModel
from torch.distributed.tensor import DTensor

from model.checkpoints.card_file import read_card
from model.checkpoints.load import DTYPES, load_pipeline
from model.pipeline import CoInteractPipeline
from model.training_schedule import training_schedule
from model.transformer import CoInteractTransformer3DModel

from .batches import draw_batch, draw_levels
from .branches import choose_trained, with_hoi_branch
from .export import export_checkpoint, trained_card
from .held_out import HeldOut, Measured
from .objective import CoGeneration, Losses, LossWeights
from .padded_prompts import use_short_prompts
from .preparation import OnClip, prepare_cache
from .recipe import TrainRecipe
from .saves import begin, forget_old, point, publish, saved_steps, step_folder
from .sharding import gathered, held_here, load_shards, save_shards, shard

log = logging.getLogger(__name__)

STATES, CHECKPOINTS, CHECKPOINT, BEST = "state", "checkpoints", "checkpoint", "best"
HELD_OUT = "held-out.jsonl"
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
    best_step: int | None = None
    best_loss: float = math.inf

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
    on_held_out: Callable[[Measured], None] | None = None,
) -> Path:
    """Run a recipe and return the folder of the pruned, RGB-only checkpoint.

    Writes to `recipe.output`: curve.jsonl and tensorboard/, state/ (to resume from), checkpoints/ (the
    moving average of the weights, LoRA merged, HOI stream pruned) and `checkpoint`, a link to the newest.
    With held-out clips also held-out.jsonl, samples/, and `best`, a link to the checkpoint of least loss.

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
    run.on_held_out = on_held_out
    if resume:
        run.resume()
    progress = run.progress
    started, saved = time.monotonic() - progress.seconds, time.monotonic()
    with (recipe.output / "curve.jsonl").open("a" if resume else "w") as curve:
        while (share := run_share(recipe, progress.step, run.agreed(time.monotonic() - started))) < 1:
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
            if run.agreed(time.monotonic() - saved) > 60 * recipe.save_minutes:
                run.save()
                run.cache.refresh()
                saved = time.monotonic()
    folder = run.save()
    run.accelerator.end_training()
    return folder


class TrainingRun:
    """The networks, optimisers and clips of one training run."""

    def __init__(
        self, recipe: TrainRecipe, on_clip: OnClip | None = None, most_clips: int | None = None
    ) -> None:
        self.recipe = recipe
        self.accelerator = _make_accelerator(recipe)
        self.pipeline = load_pipeline(recipe.base, "cpu", DTYPES[recipe.frozen_weights])
        self.cache = prepare_cache(recipe, self.pipeline, self.accelerator, on_clip, most_clips)
        self.held_out = None
        if recipe.held_out is not None:
            self.held_out = HeldOut(recipe, recipe.held_out, self.pipeline, self.accelerator, most_clips)
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
        if recipe.shard:  # which makes other parameters of the weights
            shard(self.model, self.accelerator.device)
        self.trained = [weight for weight in self.transformer.parameters() if weight.requires_grad]
        self.optimizers = [
            self.accelerator.prepare(optimizer) for optimizer in make_optimizers(self.transformer, recipe)
        ]
        self.prepared = self.model if recipe.shard else self.accelerator.prepare(self.model)
        self.pipeline.transformer = self.transformer
        self.average = EMAModel(held_here(self.trained), decay=recipe.ema, use_ema_warmup=True, power=0.75)
        self.average.to(self.accelerator.device)
        self.progress = _Progress()
        self.on_held_out: Callable[[Measured], None] | None = None
        self.accelerator.register_for_checkpointing(self.progress, self.average)

    def resume(self) -> None:
        """Go on from the last save. Raises FileNotFoundError if there is none."""
        output = self.recipe.output
        saves = saved_steps(output / STATES)
        if not saves:
            raise FileNotFoundError(f"{output} holds no state to resume from")
        if self.recipe.shard:
            optimizers, known = self._plain_optimizers(), self.progress.state_dict()
            self.progress.load_state_dict(load_shards(saves[-1], self.model, optimizers, self.average, known))
        else:
            self.accelerator.load_state(str(saves[-1]))
        if self.accelerator.is_main_process:
            _forget_steps_from(self.progress.step, output / "curve.jsonl")
            _forget_steps_from(self.progress.step + 1, output / HELD_OUT)

    def _plain_optimizers(self) -> list[torch.optim.Optimizer]:
        return [optimizer.optimizer for optimizer in self.optimizers]

    def agreed(self, seconds: float) -> float:
        """The main process's clock: all must save, and end, in the same step."""
        if self.accelerator.num_processes == 1:
            return seconds
        told = torch.tensor([seconds], dtype=torch.float64, device=self.accelerator.device)
        return float(broadcast(told).item())

    def step(self, share: float) -> Step:
        """One update of the weights and of their moving average."""
        recipe, step = self.recipe, self.progress.step
        self.model.visibility = "mutual" if share < recipe.first_stage else "asymmetric"
        rate = learning_rate(recipe, step, share)
        began = time.monotonic()
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        parts = []
        for part in range(recipe.gradient_accumulation):
            losses, finite = self._accumulate(step, part, share)
            parts.append(losses)
        if finite:
            self.average.step(held_here(self.trained))
            self.progress.skipped_in_a_row = 0
        else:
            self._count_skipped(step)
        means = self._mean(parts)
        return _report(means, step, share, rate, time.monotonic() - began, skipped=not finite)

    def _mean(self, parts: list[Losses]) -> dict[str, float | None]:
        """Means over the parts of a step and over processes. What a part has no number for does not count."""
        table = torch.tensor(
            [
                [math.nan if value is None else value.item() for value in vars(losses).values()]
                for losses in parts
            ],
            device=self.accelerator.device,
        )
        table = self.accelerator.gather(table)  # (processes · parts, losses)
        always = table.mean(dim=0).tolist()
        means = dict(zip(vars(parts[0]), table.nanmean(dim=0).tolist(), strict=True))
        known: dict[str, float | None] = {
            k: None if math.isnan(value) else value for k, value in means.items()
        }
        return {**known, "total": always[0], "rgb": always[1]}

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
        # Batches are numbered over all processes, so half as many of them with twice the parts take the same.
        number = part * accelerator.num_processes + accelerator.process_index
        rng = np.random.default_rng([recipe.seed, step, number])
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
                norm = norm.full_tensor() if isinstance(norm, DTensor) else torch.as_tensor(norm)
                finite = bool(torch.isfinite(norm))
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
        if not self._all_finite():
            raise TrainingDiverged(
                f"after {self.progress.step} steps the weights are not finite numbers, and are not saved. "
                "Try a smaller learning_rate"
            )
        folder = step_folder(self.recipe.output / CHECKPOINTS, self.progress.step)
        partial = folder.with_name(f".{folder.name}.partial")
        main = self.accelerator.is_main_process
        if main:
            begin(folder)
        self._with_average(partial)
        self._save_state()
        if main:
            publish(partial, folder)
            best = step_folder(folder.parent, self.progress.best_step or self.progress.step)
            point(self.recipe.output / CHECKPOINT, folder)
            if self.held_out is not None:
                point(self.recipe.output / BEST, best)
            forget_old(folder.parent, also_kept=[best])
        self.accelerator.wait_for_everyone()
        return self.recipe.output / CHECKPOINT

    def _all_finite(self) -> bool:
        """Whether weights and average are, in all processes."""
        mine = all_finite(*held_here(self.trained), *self.average.shadow_params)
        told = torch.tensor([float(mine)], device=self.accelerator.device)
        return float(self.accelerator.gather(told).min()) == 1.0

    def _with_average(self, folder: Path) -> None:
        """What the averaged weights are for: the checkpoint, the held-out loss and samples."""
        parts = held_here(self.trained)
        self.average.store(parts)
        self.average.copy_to(parts)
        if self.held_out is not None:
            self._note(self.held_out.measure(self.prepared, self.progress.step))
        whole = gathered(self.model, self.recipe) if self.recipe.shard else self.transformer
        if self.accelerator.is_main_process and whole is not None:
            self._export(folder, whole)
        self.average.restore(parts)

    def _note(self, measured: Measured) -> None:
        progress = self.progress
        if measured.loss < progress.best_loss:
            progress.best_step, progress.best_loss = progress.step, measured.loss
        if self.accelerator.is_main_process:
            with (self.recipe.output / HELD_OUT).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": progress.step, **vars(measured)}) + "\n")
            self.accelerator.log({"held_out": measured.loss}, step=progress.step)
        if self.on_held_out is not None:
            self.on_held_out(measured)

    def _save_state(self) -> None:
        """Every process writes its part of the state; the main one puts the whole in its place."""
        folder = step_folder(self.recipe.output / STATES, self.progress.step)
        main, partial = self.accelerator.is_main_process, folder.with_name(f".{folder.name}.partial")
        if main:
            begin(folder)
        self.accelerator.wait_for_everyone()
        if self.recipe.shard:
            progress = self.progress.state_dict()
            save_shards(partial, self.model, self._plain_optimizers(), self.average, progress)
        else:
            self.accelerator.save_state(str(partial))
        self.accelerator.wait_for_everyone()
        if main:
            publish(partial, folder)
            forget_old(folder.parent)

    def _export(self, folder: Path, whole: CoInteractTransformer3DModel) -> None:
        """Write the averaged, pruned checkpoint into a folder."""
        recipe = self.recipe
        card = trained_card(
            read_card(recipe.base), recipe, steps=self.progress.step, clips=self.cache.num_clips
        )
        export_checkpoint(folder, self.pipeline, whole, card, DTYPES[recipe.stored_weights])


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
    torch.manual_seed(recipe.seed)  # for LoRA's first values, which must be the same in every process
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


def all_finite(*tensors: torch.Tensor) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def _is_known(value: float | None) -> bool:
    """JSON and tensorboard have no place for NaN."""
    return value is not None and math.isfinite(value)


def _forget_steps_from(step: int, curve: Path) -> None:
    """Delete the log of steps after the last save. The stopped run lost them, and takes them again."""
    lines = curve.read_text(encoding="utf-8").splitlines(keepends=True) if curve.exists() else []
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] < step]
    if lines:
        curve.write_text("".join(kept), encoding="utf-8")


def _report(
    means: dict[str, float | None], step: int, share: float, rate: float, seconds: float, *, skipped: bool
) -> Step:
    def number(name: str) -> float | None:
        value = means[name]
        return None if value is None else round(value, 5)

    return Step(
        step=step,
        share=round(share, 4),
        loss=number("total") or 0.0,
        rgb=number("rgb") or 0.0,
        hoi=number("hoi"),
        routing=number("routing"),
        routing_accuracy=number("routing_accuracy"),
        learning_rate=rate,
        seconds=round(seconds, 3),
        skipped=skipped,
    )
