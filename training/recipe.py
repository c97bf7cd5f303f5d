"""The recipe of a training run, a TOML file: `cointeract train --config FILE`."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .table import nearest

PATHS = ("base", "data", "held_out", "cache", "output")


class RecipeError(ValueError):
    """A recipe that cannot be run."""


class Dropouts(BaseModel):
    """The share of steps that leave a condition out. Guidance and optional conditions need it.

    The defaults are the official values.
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
    """A CSV in the official format. Leave it out to train on the clips that `cache` already holds."""
    held_out: Path | None = None
    """A CSV of clips that are not trained on. Their loss is measured with every save.

    Take other people, products and recordings than those in `data`.
    """
    samples: int = Field(0, ge=0)
    """Render so many of the held-out clips with every save."""
    cache: Path
    """Folder of encoded clips."""
    output: Path
    note: str = ""
    """What viewers of its videos should know; it goes into the result's card and is shown beside them."""
    width: int = Field(480, multiple_of=16)
    height: int = Field(720, multiple_of=16)

    steps: int = Field(1000, ge=1)
    minutes: float | None = Field(None, gt=0)
    """Wall-clock limit of the run. The learning rate falls by this limit if it comes before `steps`."""
    batch: int = Field(1, ge=1)
    gradient_accumulation: int = Field(1, ge=1)
    optimizer: Literal["adamw", "muon"] = "adamw"
    """`muon` is for training from scratch: orthogonalised updates for the matrices inside blocks.

    AdamW updates everything else.
    """
    learning_rate: float = 1e-5
    warmup_steps: int = 50
    final_rate: float = 0.05
    """The cosine ends at this share of the learning rate."""
    gradient_clip: float = 1.0
    ema: float = Field(0.999, ge=0, lt=1)
    frozen_weights: Literal["fp32", "bf16"] = "fp32"
    """Precision of the weights that LoRA leaves untrained. Trained weights are always fp32."""
    stored_weights: Literal["fp32", "bf16"] = "fp32"
    """Precision of the checkpoint that is written."""
    mixed_precision: Literal["no", "bf16"] = "no"
    gradient_checkpointing: bool = False
    shard: bool = False
    """Divide weights, gradients, moments and average over all processes (FSDP), not only the batches.

    Such a run may be resumed with another number of processes.
    """
    seed: int = 0

    lora_rank: Annotated[int, Field(ge=1)] | Literal["full"] = 128
    """Rank of LoRA on attention and feed-forward; "full" trains all weights instead.

    The experts and the HOI stream's parts are trained in full either way.
    """
    experts: bool = True
    """False trains neither router nor experts (for ablations)."""
    hoi_weight: float = 1.0
    """λh; 0 leaves the HOI stream out (for ablations)."""
    hoi_share: float = Field(1.0, ge=0, le=1)
    """Share of steps with the HOI stream. It doubles the tokens of a step."""
    routing_weight: float = 0.05
    detail_weight: float = Field(1.0, ge=1)
    """How much more the video's error weighs on faces, hands and objects than elsewhere (officially 1).

    Short trainings gain by it.
    """
    motion_fade: float = Field(0.0, ge=0, lt=1)
    """Largest share of the motion latents that is replaced by the person's photo and by noise.

    It keeps a clip from repeating the mistakes of the clip before it, to which short trainings are prone.
    """
    flow_shift: float = 5.0
    first_stage: float = Field(0.5, ge=0, le=1)
    """Share of the run in which the two streams see each other.

    After it the HOI stream still sees the video, but the video no longer sees the HOI stream.
    """
    audio_face_mask: bool = False
    dropouts: Dropouts = Dropouts()
    window: int | None = Field(None, ge=1, le=20)
    """Length in latent frames of the random part of a clip to train on; None trains on whole clips."""
    whole_clips_from: float = Field(1.0, ge=0, le=1)
    """Share of the run after which `window` no longer applies.

    Leave some of the run for whole clips: attention trained on short windows alone spreads too thinly.
    """
    whole_batch: int | None = Field(None, ge=1)
    """Clips per step after `whole_clips_from`; None keeps `batch`. Fewer clips keep a step as short."""

    workers: int = Field(0, ge=0)
    """Processes that read the next clips while one is encoded."""
    log_every: int = Field(10, ge=1)
    save_minutes: float = Field(10.0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.hoi_weight == 0 and self.first_stage > 0:
            raise ValueError("without an HOI stream (hoi_weight = 0), first_stage must be 0")
        if self.shard and (self.optimizer == "muon" or self.samples):
            raise ValueError("shard = true goes with AdamW (Muon needs whole matrices) and without samples")
        if self.samples and self.held_out is None:
            raise ValueError("samples are rendered of held-out clips: name a CSV of them in held_out")
        if self.frozen_weights == "bf16" and self.mixed_precision == "no":
            raise ValueError('frozen_weights = "bf16" needs mixed_precision = "bf16"')
        return self

    @classmethod
    def read(cls, path: str | Path) -> TrainRecipe:
        """Read a recipe.

        Raises:
            RecipeError: not TOML, an unknown name, a value out of range. The message names the file.
        """
        path = Path(path)
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        except ValueError as error:  # of TOML, or of UTF-8
            raise RecipeError(f"{path} is not TOML: {error}") from error
        for name in PATHS:
            if isinstance(values.get(name), str):
                values[name] = path.parent / values[name]
        try:
            return cls(**values)
        except ValidationError as error:
            faults = "\n".join(_explained(fault) for fault in error.errors())
            raise RecipeError(f"{path} cannot be used.\n{faults}") from error


def _explained(fault: Any) -> str:
    """One of pydantic's errors as a sentence with the field, and the nearest name if that is unknown."""
    place = fault["loc"]
    name = ".".join(str(part) for part in place if part not in ("constrained-int", "literal['full']"))
    if fault["type"] == "extra_forbidden":
        known = Dropouts.model_fields if place[0] == "dropouts" else TrainRecipe.model_fields
        return f"{name}: there is no such field{nearest(str(place[-1]), tuple(known))}"
    message = fault["msg"].removeprefix("Value error, ")
    return f"{name}: {message}" if name else str(message)
