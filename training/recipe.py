"""What a training run is told, as a TOML file: `cointeract train --config FILE`."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Dropouts(BaseModel):
    """How often a condition is left out, so that guidance works and each condition is optional (official
    values).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: float = Field(0.1, ge=0, le=1)
    motion: float = Field(0.4, ge=0, le=1)
    audio: float = Field(0.1, ge=0, le=1)
    pose: float = Field(0.5, ge=0, le=1)


class TrainRecipe(BaseModel):
    """One co-generation training run. Paths are relative to the recipe's folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: Path
    """Checkpoint folder to start from."""
    data: Path | None = None
    """Official CSV. Encoded clips are kept in `cache`; leave out to train on what `cache` already holds."""
    cache: Path
    output: Path
    width: int = Field(480, multiple_of=16)
    height: int = Field(720, multiple_of=16)

    steps: int = Field(1000, ge=1)
    minutes: float | None = None
    """Wall clock after which the run ends even if `steps` are not done; the learning rate falls
    accordingly.
    """
    batch: int = 1
    gradient_accumulation: int = 1
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon: orthogonalised updates for the matrices inside blocks, AdamW for the rest; for training from
    scratch.
    """
    learning_rate: float = 1e-5
    warmup_steps: int = 50
    final_rate: float = 0.05
    """Share of the learning rate that the cosine ends at."""
    gradient_clip: float = 1.0
    ema: float = Field(0.999, ge=0, lt=1)
    frozen_weights: Literal["fp32", "bf16"] = "fp32"
    """Precision of the weights that are not trained (LoRA); trained ones are always fp32."""
    stored_weights: Literal["fp32", "bf16"] = "fp32"
    """Precision of the checkpoint that is written."""
    mixed_precision: Literal["no", "bf16"] = "no"
    gradient_checkpointing: bool = False
    seed: int = 0

    lora_rank: int | None = 128
    """None trains all weights; otherwise LoRA on attention and feed-forward, experts and the HOI
    stream's parts in full.
    """
    experts: bool = True
    """False trains no router and no experts (for ablations)."""
    hoi_weight: float = 1.0
    """λh; 0 leaves the HOI stream out (for ablations)."""
    hoi_share: float = Field(1.0, ge=0, le=1)
    """Share of steps that carry the HOI stream, which doubles a step's tokens."""
    routing_weight: float = 0.05
    detail_weight: float = Field(1.0, ge=1)
    """How much more the video's error weighs on faces, hands and objects than elsewhere; for small budgets.
    """
    motion_fade: float = Field(0.0, ge=0, lt=1)
    """Up to this share of the motion frames' latents gives way to the person's photo and to noise, so that
    what a generated clip got wrong is not carried on; for small budgets.
    """
    flow_shift: float = 5.0
    first_stage: float = Field(0.5, ge=0, le=1)
    """Share of the run in which both streams see each other; after it video tokens no longer see the HOI
    stream.
    """
    audio_face_mask: bool = False
    dropouts: Dropouts = Dropouts()
    window: int | None = Field(None, ge=1, le=20)
    """Latent frames to train on, from a random place of the clip; None trains on whole clips."""
    whole_clips_from: float = Field(1.0, ge=0, le=1)
    """Share of the run after which `window` no longer applies. Leave time for it: attention that has only
    seen short windows spreads too thin over a whole clip.
    """
    whole_batch: int | None = Field(None, ge=1)
    """Clips per step from then on, if not `batch`; fewer, so that a step takes as long as before."""

    workers: int = 0
    """Processes that read clips ahead while they are encoded."""
    log_every: int = 10
    save_minutes: float = 10.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.hoi_weight == 0 and self.first_stage > 0:
            raise ValueError("without an HOI stream (hoi_weight = 0), first_stage must be 0")
        return self

    @classmethod
    def read(cls, path: str | Path) -> TrainRecipe:
        """Read a recipe.

        Raises:
            ValueError: not TOML, an unknown name, a value out of range.
        """
        path = Path(path)
        with path.open("rb") as file:
            values = tomllib.load(file)
        for name in ("base", "data", "cache", "output"):
            if name in values:
                values[name] = path.parent / values[name]
        return cls(**values)
