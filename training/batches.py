"""What one step trains on: random clips of the cache, with the recipe's dropouts, and noise levels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from .cache import ClipCache, stack
from .clips import EncodedClip
from .objective import Batch
from .padded_prompts import pad_prompts
from .recipe import TrainRecipe


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


def draw_levels(rng: np.random.Generator, count: int, levels: int = 1000) -> torch.Tensor:
    """Draw one noise level from each of `count` equal parts of the schedule.

    The levels are uniform, and vary less from batch to batch than independent ones.
    """
    return torch.from_numpy(((np.arange(count) + rng.random(count)) / count * levels).astype(np.int64))
