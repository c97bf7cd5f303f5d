"""The clips of a recipe's table, checked and encoded before training begins."""

from __future__ import annotations

from collections.abc import Callable

from accelerate import Accelerator

from model.pipeline import CoInteractPipeline

from .cache import EMPTY_PROMPT, ClipCache, fill_cache
from .clips import ClipEncoder
from .dataset import CsvDataset, Needs
from .fingerprint import clip_name, encoders_digest
from .recipe import TrainRecipe

OnClip = Callable[[int, int], None]
"""Told how many of the clips are encoded, and how many there are."""


def prepare_cache(
    recipe: TrainRecipe,
    pipeline: CoInteractPipeline,
    accelerator: Accelerator,
    on_clip: OnClip | None = None,
    most: int | None = None,
) -> ClipCache:
    """The clips to train on, encoded as far as they are not yet.

    Args:
        most: take only so many rows of the table.

    Raises:
        FileNotFoundError: the recipe has no table, and `cache` no clips.
        ValueError: rows cannot be trained on.
    """
    if recipe.data is None:
        return ClipCache(recipe.cache)
    clips = CsvDataset(recipe.data, recipe.width, recipe.height, needs_of(recipe))
    if recipe.batch > 1 and (unlike := clips.unlike()):
        raise ValueError(f"{unlike[0]}: such clips cannot share a batch. Set batch = 1 and accumulate")
    return encode_table(recipe, clips, pipeline, accelerator, on_clip, most)


def encode_table(
    recipe: TrainRecipe,
    clips: CsvDataset,
    pipeline: CoInteractPipeline,
    accelerator: Accelerator,
    on_clip: OnClip | None = None,
    most: int | None = None,
) -> ClipCache:
    """Encode what is not in the cache yet; each process takes its share of the rows."""
    encoders = encoders_digest(recipe.base)
    names = [clip_name(encoders, clips.digest(index)) for index in range(len(clips))][:most]
    empty = f"{encoders[:32]}-{EMPTY_PROMPT}"
    pipeline.to(accelerator.device)
    fill_cache(
        recipe.cache,
        clips,
        ClipEncoder(pipeline, accelerator.device),
        range(accelerator.process_index, len(names), accelerator.num_processes),
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
