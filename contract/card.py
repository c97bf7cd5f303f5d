"""The card of a checkpoint: what everybody must know about a model that they have not loaded."""

from __future__ import annotations

from typing import Annotated, Final, Self

from pydantic import BaseModel, ConfigDict, Field

from contract.choices import Preset
from contract.frozen import Frozen
from contract.speed import Work
from contract.video import CLIP_FRAMES, FPS

CARD_FILE: Final = "cointeract.json"
"""Name of the card inside a checkpoint folder."""

MANIFEST: Final = "SHA256SUMS"
"""Name of the list of its files, in the format of `sha256sum`: `sha256sum -c SHA256SUMS` checks a copy."""


class CheckpointDefaults(Frozen):
    """Sampling settings that a request leaves open."""

    num_inference_steps: int
    guidance_scale: float
    flow_shift: float
    negative_prompt: str


OFFICIAL_DEFAULTS: Final = CheckpointDefaults(
    num_inference_steps=40,
    guidance_scale=7.0,
    flow_shift=7.0,
    negative_prompt=(
        "Blurry, worst quality, blurred details, static frame, violent emotions, rapid hand shaking, "
        "subtitles, ugly, deformed, extra fingers, poorly drawn hands, poorly drawn face"
    ),
)
"""What the official code renders with."""


class Calibration(Frozen):
    """What `cointeract calibrate` has found for a preset that leaves out steps."""

    levels: tuple[float, ...]
    """Noise levels of the steps to compute, from 1 down."""
    psnr_db: float
    """Of its clips against the exact ones: the median."""
    lowest_psnr_db: float


class CheckpointCard(BaseModel):
    """`cointeract.json` in a checkpoint folder: what the server must know of a model that it never loads."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    trained: bool
    sizes: tuple[Annotated[str, Field(pattern=r"^[1-9]\d{0,4}x[1-9]\d{0,4}$")], ...] = Field(min_length=1)
    """Recommended "WIDTHxHEIGHT", multiples of 16; the first is the default."""
    min_side: int
    max_pixels: int = Field(gt=0)
    frames_per_clip: int = CLIP_FRAMES
    fps: int = FPS
    defaults: CheckpointDefaults
    draft: CheckpointDefaults | None = None
    """Settings of preset draft: the few steps that the checkpoint was distilled for, if it was."""
    calibration: dict[Preset, Calibration] = Field(default_factory=dict)
    """What presets that leave out steps compute. One that is not here takes evenly spread steps."""
    pose: bool = True
    license: str = ""
    sources: dict[str, str] = Field(default_factory=dict)
    """What it was made from."""
    note: str = ""
    """What viewers of its videos should know. It is shown beside them."""

    @classmethod
    def stored(cls, data: bytes) -> Self:
        """The card as another version may have published it. Raises ValueError."""
        return cls.model_validate_json(data, extra="ignore")

    @property
    def default_clip(self) -> Work:
        """The work of one clip at the default size and settings."""
        width, height = (int(side) for side in self.sizes[0].split("x"))
        return Work.of_clip(width, height, self.defaults.num_inference_steps, self.defaults.guidance_scale)

    @property
    def presets(self) -> tuple[Preset, ...]:
        """What a request may ask for."""
        return tuple(preset for preset in Preset if preset is not Preset.DRAFT or self.draft is not None)
