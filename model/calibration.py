"""Which steps a checkpoint should compute, measured on it: the fewest that keep a preset's quality.

One exact run records the velocities of all steps. What a choice of steps does to the end of a clip is, to
first order, a weighted sum of them, so choices are compared without running the network again. How many steps
are needed is then measured: clips are generated with them and held against the exact ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from types import MappingProxyType
from typing import Final

import numpy as np
import torch

from contract.card import Calibration
from contract.choices import Preset
from contract.job import OnProgress
from contract.params import GenerationParams
from contract.sampling import LEAST_SAVING, first_routed_step, needed_steps, noise_levels
from model.clip import ClipRenderer
from model.inputs import VideoInputs
from model.parallel.ranks import Arrangement, Ranks
from model.pipeline import CoInteractPipeline
from model.velocity import VelocityCurve

WANTED_PSNR_DB: Final[Mapping[Preset, float]] = MappingProxyType({Preset.BALANCED: 45.0, Preset.FAST: 38.0})
"""Least likeness to the exact clips that a preset is for."""

MARGIN_DB: Final = 3.0
"""Other videos than those calibrated on come out less like theirs."""

IDENTICAL_DB: Final = 100.0
"""Told of clips without any difference, and of less difference than that."""

Report = Callable[[str], None]


@dataclass(frozen=True)
class Trial:
    """One choice of steps, and how its clips compare with the exact ones."""

    steps: tuple[int, ...]
    psnr_db: tuple[float, ...]
    """Of each clip."""

    @property
    def median_db(self) -> float:
        return float(np.median(self.psnr_db))


@dataclass(frozen=True)
class _RecordingRenderer(ClipRenderer):
    """Keeps the velocities that it computes on the way."""

    velocities: list[torch.Tensor] = field(default_factory=list)

    def _velocity(
        self, params: GenerationParams, predicted: list[torch.Tensor], arrangement: Arrangement
    ) -> torch.Tensor:
        velocity = super()._velocity(params, predicted, arrangement)
        self.velocities.append(velocity.flatten().cpu())
        return velocity


class _RecordingPipeline(CoInteractPipeline):
    """The same networks with a renderer that records."""

    def __init__(self, pipeline: CoInteractPipeline) -> None:
        super().__init__(**pipeline.components)
        self.streams = pipeline.streams
        self.velocities: list[torch.Tensor] = []

    def _renderer(self, ranks: Ranks | None) -> ClipRenderer:
        plain = super()._renderer(ranks)
        return _RecordingRenderer(**vars(plain), velocities=self.velocities)


def calibrate(
    pipeline: CoInteractPipeline,
    inputs: VideoInputs,
    params: GenerationParams,
    on_progress: OnProgress | None = None,
    report: Report = lambda _: None,
) -> dict[Preset, Calibration]:
    """Find the steps that `balanced` and `fast` should compute, on the video of `params`.

    A preset whose quality is not reached even with as many steps as it may compute gets those: its measured
    likeness is in the calibration, and is said.
    """
    exact = params.model_copy(update={"preset": Preset.EXACT, "computed_steps": None})
    report(f"exact: {params.num_clips} clips of {params.num_inference_steps} steps")
    recording = _RecordingPipeline(pipeline)
    frames = [clip.frames for clip in recording.generate_clips(inputs, exact, on_progress=on_progress)]
    levels = noise_levels(params.num_inference_steps, params.flow_shift)
    products = inner_products(recording.velocities, len(levels))
    choices = {len(steps): steps for steps in best_steps(levels, products)}
    trials: dict[int, Trial] = {}

    def trial(count: int) -> Trial:
        if count not in trials:
            steps = choices[count]
            changed = {"preset": Preset.FAST, "computed_steps": steps}
            made = pipeline.generate_clips(inputs, exact.model_copy(update=changed), on_progress=on_progress)
            likeness = (psnr(clip.frames, frames[clip.index]) for clip in made)
            trials[count] = Trial(steps, tuple(likeness))
            report(f"{count} of {len(levels)} steps: {trials[count].median_db:.1f} dB")
        return trials[count]

    found = {}
    for preset, saving in LEAST_SAVING.items():
        counts = [count for count in sorted(choices) if count <= max(len(levels) / saving, min(choices))]
        best = fewest(counts, trial, WANTED_PSNR_DB[preset] + MARGIN_DB)
        if best.median_db < WANTED_PSNR_DB[preset]:
            report(f"{preset} misses its {WANTED_PSNR_DB[preset]:.0f} dB on this checkpoint")
        found[preset] = Calibration(
            levels=tuple(levels[step] for step in best.steps),
            psnr_db=round(best.median_db, 1),
            lowest_psnr_db=round(min(best.psnr_db), 1),
        )
    return found


def fewest(counts: Sequence[int], trial: Callable[[int], Trial], wanted_db: float) -> Trial:
    """The trial with the fewest steps that reaches `wanted_db`; the one with the most if none does."""
    low, high = 0, len(counts) - 1
    while low < high:  # more steps are better, nearly always
        middle = (low + high) // 2
        if trial(counts[middle]).median_db >= wanted_db:
            high = middle
        else:
            low = middle + 1
    return trial(counts[low])


def psnr(frames: np.ndarray, exact: np.ndarray) -> float:
    """Likeness of two clips (T, H, W, 3) uint8 in dB, at most `IDENTICAL_DB`."""
    error = float(np.square(frames.astype(np.float32) - exact).mean())
    return IDENTICAL_DB if error == 0 else min(IDENTICAL_DB, 10 * math.log10(255**2 / error))


def inner_products(velocities: Sequence[torch.Tensor], steps: int) -> torch.Tensor:
    """Velocities of clips, step by step, (D,) each → (clips, steps, steps) fp64, per element."""
    clips = [torch.stack(list(velocities[i : i + steps])) for i in range(0, len(velocities), steps)]
    return torch.stack([clip.double() @ clip.double().T / clip.shape[1] for clip in clips])


def best_steps(levels: Sequence[float], products: torch.Tensor) -> Iterator[tuple[int, ...]]:
    """For each number of steps from the fewest possible, the ones that leave the smallest error.

    Each choice grows from the one before by the step that helps most, and then moves steps while that helps.
    """
    error, needed = _EndError(levels, products), needed_steps(levels)
    chosen = needed
    while True:
        chosen = _moved(chosen, needed, len(levels), error)
        yield tuple(sorted(chosen))
        left = set(range(len(levels))) - chosen
        if not left:
            return
        chosen = chosen | {min(left, key=lambda step: error(chosen | {step}))}


def _moved(
    chosen: set[int], needed: set[int], steps: int, error: Callable[[Collection[int]], float]
) -> set[int]:
    """`chosen` after every move of one step that lessens the error, until none does."""
    best = error(chosen)
    moving = True
    while moving:
        moving = False
        for old in sorted(chosen - needed):
            others = chosen - {old}
            for new in sorted(set(range(steps)) - chosen):
                found = error(others | {new})
                if found < best * (1 - 1e-6):
                    best, chosen, moving = found, others | {new}, True
                    break
    return chosen


class _EndError:
    """How far from the exact latents a clip ends if only some steps are computed: root of the mean square, to
    first order, median over clips.
    """

    def __init__(self, levels: Sequence[float], products: torch.Tensor) -> None:
        self._levels = (*levels, 0.0)
        self._products = products
        self._known: dict[frozenset[int], float] = {}

    def __call__(self, steps: Collection[int]) -> float:
        key = frozenset(steps)
        if key not in self._known:
            parts = self._parts(key)
            squares = torch.einsum("i,cij,j->c", parts, self._products, parts)
            self._known[key] = float(squares.clamp_min(0).sqrt().median())
        return self._known[key]

    def _parts(self, computed: Collection[int]) -> torch.Tensor:
        """(steps,) what part of each step's velocity the end has too much or too little: the very code that
        interpolates, run on unit vectors instead of velocities.
        """
        count = len(self._levels) - 1
        curve = VelocityCurve(self._levels, first_routed_step(self._levels[:-1]))
        units = torch.eye(count, dtype=torch.float64)
        end = torch.zeros(count, dtype=torch.float64)
        for step, (level, following) in enumerate(pairwise(self._levels)):
            if step in computed:
                end = curve.corrected(end, step, units[step])
                velocity = units[step]
            else:
                velocity = curve.foretell(step)
            end = end + (following - level) * (velocity - units[step])
        return end
