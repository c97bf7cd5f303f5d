"""Likeness of faster videos to exact ones, what the evaluation says of both, and a chart of it.

    OMP_NUM_THREADS=1 python benchmarks/preset_quality.py --output FOLDER --chart CHART.svg

Held-out videos of the procedural world, generated whole: each clip continues its own way's clip before. The
ways: exact; exact with other noise (what chance alone changes); the presets as the card has them; even:N, N
evenly spread steps as a card without calibration gets them; and diffusers' caches, first-block:THRESHOLD and
mag:THRESHOLD, reset at each clip. What is finished lies in FOLDER, so the script can be stopped and goes on
where it was.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FirstBlockCacheConfig, MagCacheConfig
from diffusers.hooks import HookRegistry
from preset_chart import Point, chart

from contract.card import CheckpointCard
from contract.choices import Preset
from contract.params import GenerationParams
from contract.presets import preset_steps
from contract.sampling import even_steps, noise_levels
from contract.video import CLIP_FRAMES
from deploy.samples import BUNDLED_CHECKPOINT
from model.calibration import psnr
from model.checkpoints.card_file import read_card
from model.checkpoints.load import load_pipeline
from model.clip import CONDITIONAL
from model.inputs import VideoInputs
from model.pipeline import CoInteractPipeline
from training.evaluate import Measured, markdown_table, measure
from training.synthetic import SyntheticVideo, make_video
from training.world import make_cast

EXACT, OTHER_NOISE = "exact", "exact, other noise"
WAYS = (
    *(EXACT, OTHER_NOISE, "balanced", "fast"),
    *(f"even:{count}" for count in (4, 5, 6, 8, 10, 14)),
    *(f"first-block:{threshold}" for threshold in (0.05, 0.1, 0.2, 0.3)),
    *(f"mag:{threshold}" for threshold in (0.02, 0.06, 0.12)),
)
OTHER_SEED = 1000
SCORED = (EXACT, OTHER_NOISE, "balanced", "fast")
"""Ways whose evaluation is shown."""


class Quality:
    """One checkpoint's videos, made in each way."""

    def __init__(self, checkpoint: Path, clips: int) -> None:
        self.card: CheckpointCard = read_card(checkpoint)
        self.pipeline: CoInteractPipeline = load_pipeline(checkpoint)
        self.clips = clips
        self.width, self.height = (int(side) for side in self.card.sizes[0].split("x"))
        settings = self.card.defaults
        self.levels = noise_levels(settings.num_inference_steps, settings.flow_shift)
        self.layers_run = 0
        self._mag_ratios: list[float] = []
        for block in self.pipeline.transformer.blocks:
            block.attn1.register_forward_pre_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.layers_run += 1

    def video(self, seed: int) -> SyntheticVideo:
        return make_video(
            seed, self.width, self.height, actions=self.clips, split="heldout", synthesiser="formant"
        )

    def make(self, way: str, true: SyntheticVideo) -> tuple[np.ndarray, float]:
        """(T, H, W, 3) uint8 frames, and forwards per clip by the layers that ran."""
        name, _, number = way.partition(":")
        changed: dict[str, Any] = {}
        if way == OTHER_NOISE:
            changed["seed"] = OTHER_SEED
        elif name in (Preset.BALANCED, Preset.FAST):
            changed = {"preset": name, "computed_steps": preset_steps(self.card, Preset(name), self.levels)}
        elif name == "even":
            steps = even_steps(self.levels, len(self.levels) / int(number))
            changed = {"preset": Preset.FAST, "computed_steps": steps}
        params = self._params(true, **changed)
        with self._cached(name, number, true):
            self.layers_run = 0
            frames = self._frames(true, params)
        return frames, self.layers_run / len(self.pipeline.transformer.blocks) / self.clips

    def _params(self, true: SyntheticVideo, **changed: Any) -> GenerationParams:
        return GenerationParams(
            prompts=tuple(true.prompts),
            width=self.width,
            height=self.height,
            product_scale=1.0,
            num_clips=self.clips,
            num_frames=len(true.frames),
            **{"seed": 0, **self.card.defaults.model_dump(), **changed},
        )

    def _frames(self, true: SyntheticVideo, params: GenerationParams) -> np.ndarray:
        inputs = VideoInputs(true.person_image, true.audio, true.product_image)
        frames = []
        for clip in self.pipeline.generate_clips(inputs, params):
            frames.append(clip.frames)
            # What a cache keeps fits no other clip.
            self.pipeline.transformer._reset_stateful_cache()
        return np.concatenate(frames)

    @contextmanager
    def _cached(self, name: str, threshold: str, true: SyntheticVideo) -> Iterator[None]:
        transformer, steps = self.pipeline.transformer, len(self.levels)
        if name == "first-block":
            transformer.enable_cache(FirstBlockCacheConfig(threshold=float(threshold)))
        elif name == "mag":
            if not self._mag_ratios:
                self._mag_ratios = self._calibrated_mag(true)
            transformer.enable_cache(
                MagCacheConfig(
                    threshold=float(threshold), num_inference_steps=steps, mag_ratios=self._mag_ratios
                )
            )
        yield
        if transformer.is_cache_enabled:
            transformer.disable_cache()

    def _calibrated_mag(self, true: SyntheticVideo) -> list[float]:
        """MagCache's ratios of one exact clip, as its calibration finds them in the conditional pass."""
        transformer = self.pipeline.transformer
        # One step more than there are: with the last one it would forget them.
        transformer.enable_cache(MagCacheConfig(calibrate=True, num_inference_steps=len(self.levels) + 1))
        inputs = VideoInputs(true.person_image, true.audio, true.product_image)
        next(self.pipeline.generate_clips(inputs, self._params(true)))
        ratios = [1.0]
        for module in transformer.blocks:
            for hook in HookRegistry.check_if_exists_or_initialize(module).hooks.values():
                state = hook.state_manager._state_cache.get(CONDITIONAL)
                if state is not None and len(state.calibration_ratios) > len(ratios):
                    ratios = list(state.calibration_ratios)
        transformer.disable_cache()
        return ratios


def finish(quality: Quality, seed: int, folder: Path) -> None:
    """Make what is missing of one video."""
    results = folder / f"video-{seed}.json"
    done = json.loads(results.read_text()) if results.exists() else {}
    missing = [way for way in WAYS if way not in done]
    if not missing:
        return
    true, other = quality.video(seed), make_cast(seed + 10_000, "heldout")
    exact, passes = quality.make(EXACT, true)
    for way in missing:
        start = time.process_time()
        frames, passes = quality.make(way, true)
        seconds = time.process_time() - start
        clips = [slice(at, at + CLIP_FRAMES) for at in range(0, len(frames), CLIP_FRAMES)]
        done[way] = {
            "passes": passes,
            "cpu_seconds": round(seconds, 1),
            "psnr_db": [round(psnr(frames[clip], exact[clip]), 2) for clip in clips],
            "scores": vars(measure(frames, true, other)) if way in SCORED else {},
        }
        results.write_text(json.dumps(done, indent=1) + "\n")
        sys.stderr.write(f"video {seed}, {way}: {passes:.1f} forwards, {done[way]['psnr_db']} dB\n")


def summary(videos: list[dict[str, Any]]) -> tuple[str, list[Point]]:
    lines = ["| way | forwards per clip | times fewer | median dB | lowest dB | clips |", "|---" * 6 + "|"]
    whole = float(np.mean([video[EXACT]["passes"] for video in videos]))
    points = []
    for way in WAYS:
        values = [value for video in videos for value in video[way]["psnr_db"]]
        passes = float(np.mean([video[way]["passes"] for video in videos]))
        median = float(np.median(values))
        cells = (way, f"{passes:.1f}", f"{whole / passes:.2f}", f"{median:.1f}", f"{min(values):.1f}")
        lines.append(f"| {' | '.join(cells)} | {len(values)} |")
        if way != EXACT:
            points.append(Point(way, whole / passes, median, min(values)))
    scores: dict[str, list[Measured]] = {way: [video[way]["scores"] for video in videos] for way in SCORED}
    return "\n".join(lines) + "\n\n" + markdown_table(scores) + "\n", points


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=BUNDLED_CHECKPOINT)
    parser.add_argument("--output", type=Path, required=True, help="folder for what is finished")
    parser.add_argument("--videos", type=int, default=8)
    parser.add_argument("--clips", type=int, default=3)
    parser.add_argument("--chart", type=Path, help="SVG file to write")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    quality = Quality(options.checkpoint, options.clips)
    with torch.no_grad():
        for seed in range(options.videos):
            finish(quality, seed, options.output)
    videos = [
        json.loads((options.output / f"video-{seed}.json").read_text()) for seed in range(options.videos)
    ]
    table, points = summary(videos)
    sys.stdout.write(table)
    if options.chart is not None:
        options.chart.write_text(chart(points))


if __name__ == "__main__":
    main()
