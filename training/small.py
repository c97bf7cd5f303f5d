"""The small checkpoint, from nothing, in one command: `python -m training.small RECIPE.toml OUTPUT`.

The stages are: audio encoder → VAE → untrained pipeline with the small DiT → encoded clips of the procedural
world → co-generation training → the RGB-only checkpoint in OUTPUT/checkpoint. A stage whose result exists is
skipped.
"""

from __future__ import annotations

import argparse
import logging
import os
import tomllib
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler
from pydantic import BaseModel, ConfigDict, Field
from transformers import Wav2Vec2Model

from contract.card import CheckpointCard, CheckpointDefaults
from model.checkpoints.card_file import read_card, rewrite_card, write_card
from model.checkpoints.load import load_pipeline
from model.pipeline import CoInteractPipeline
from model.transformer import CoInteractTransformer3DModel

from .cache import fill_cache
from .clips import ClipEncoder, TrainingClip
from .dataset import synthetic_clip
from .loop import Step, holds_run, train
from .recipe import TrainRecipe
from .small_encoders import (
    AUDIO_LAYERS,
    SMALL_AUDIO_DIM,
    SMALL_TEXT_DIM,
    make_feature_extractor,
    make_text_encoder,
    make_tokenizer,
    train_audio_encoder,
)
from .speech import Synthesiser
from .synthetic import make_video
from .vae_training import VAERecipe, reconstruction_psnr, train_vae

log = logging.getLogger(__name__)

ZERO_AT_START = ("proj_out.", "hoi_proj_out.")


class SmallTransformer(BaseModel):
    """Width and depth of the small DiT."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    heads: int = 6
    head_dim: int = 32
    layers: int = 5
    ffn_dim: int = 576
    expert_hidden_dim: int = 64


class SmallRecipe(BaseModel):
    """All stages. `training` overrides fields of `TrainRecipe` (paths and sizes are filled in)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "procedural-world"
    width: int = Field(80, multiple_of=16)
    height: int = Field(128, multiple_of=16)
    seed: int = 0
    synthesiser: Synthesiser = "formant"
    audio_steps: int = 300
    vae: VAERecipe = VAERecipe()
    transformer: SmallTransformer = SmallTransformer()
    clips: int = 1000
    training: dict[str, object] = {}
    num_inference_steps: int = 20
    guidance_scale: float = 2.0
    flow_shift: float = 5.0

    @classmethod
    def read(cls, path: Path) -> SmallRecipe:
        with path.open("rb") as file:
            return cls(**tomllib.load(file))


class SyntheticClips:
    """Endless clips of the procedural world by number. Two in five are first clips, without motion frames."""

    def __init__(self, recipe: SmallRecipe) -> None:
        self._recipe = recipe

    def __len__(self) -> int:
        return self._recipe.clips

    def __getitem__(self, index: int) -> TrainingClip:
        clip = 0 if index % 5 < 2 else 1
        recipe = self._recipe
        video = make_video(
            index + 1_000_000 * recipe.seed,
            recipe.width,
            recipe.height,
            actions=clip + 1,
            synthesiser=recipe.synthesiser,
        )
        return synthetic_clip(video, clip)


def build_small(recipe: SmallRecipe, output: Path, device: str = "cpu", workers: int = 0) -> Path:
    """Run all stages and return the checkpoint's folder. Training uses the device that accelerate finds."""
    pipeline_folder = prepare_pipeline(recipe, output, device, workers)
    encode_clips(recipe, output, pipeline_folder, range(recipe.clips), device, workers)
    settings: dict[str, object] = {
        "base": pipeline_folder,
        "cache": output / "cache",
        "output": output / recipe.name,
        "width": recipe.width,
        "height": recipe.height,
        "lora_rank": "full",
        "optimizer": "muon",
        "flow_shift": recipe.flow_shift,
        "seed": recipe.seed,
        "stored_weights": "bf16",
    }
    training = TrainRecipe.model_validate({**settings, **recipe.training})
    folder = train(training, resume=holds_run(training.output), on_step=_log_step)
    card = read_card(folder)
    rewrite_card(card.model_copy(update={"sources": small_card(recipe).sources}), folder)
    return folder


def prepare_pipeline(recipe: SmallRecipe, output: Path, device: str = "cpu", workers: int = 0) -> Path:
    """Make a checkpoint folder of audio encoder, VAE and an untrained DiT. Parts that exist are kept."""
    if not (output / "audio_encoder").is_dir():
        train_audio_encoder(output, recipe.audio_steps, recipe.seed, recipe.synthesiser).save_pretrained(
            output / "audio_encoder"
        )
    if not (output / "vae" / "config.json").is_file():
        settings = recipe.vae.model_copy(update={"width": recipe.width, "height": recipe.height})
        vae = train_vae(settings, output, device, workers)
        log.info("VAE reconstructs held-out videos at %.1f dB", reconstruction_psnr(vae, settings))
    folder = output / "pipeline"
    if not (folder / "model_index.json").is_file():
        pipeline = assemble(recipe, output)
        pipeline.save_pretrained(folder)
        write_card(small_card(recipe), folder)
    return folder


def assemble(recipe: SmallRecipe, output: Path) -> CoInteractPipeline:
    """A pipeline of the trained encoders in `output` and an initialised DiT with an HOI stream."""
    vae = AutoencoderKLWan.from_pretrained(output / "vae")
    tokenizer = make_tokenizer()
    return CoInteractPipeline(
        transformer=make_transformer(recipe),
        vae=vae,
        text_encoder=make_text_encoder(len(tokenizer), recipe.seed),
        tokenizer=tokenizer,
        audio_encoder=Wav2Vec2Model.from_pretrained(output / "audio_encoder"),
        feature_extractor=make_feature_extractor(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )


def make_transformer(recipe: SmallRecipe) -> CoInteractTransformer3DModel:
    """The small DiT, initialised for training from scratch: it predicts 0 and its residual gates are open."""
    torch.manual_seed(recipe.seed)
    sizes = recipe.transformer
    transformer: CoInteractTransformer3DModel = CoInteractTransformer3DModel(
        num_attention_heads=sizes.heads,
        attention_head_dim=sizes.head_dim,
        ffn_dim=sizes.ffn_dim,
        num_layers=sizes.layers,
        text_dim=SMALL_TEXT_DIM,
        audio_dim=SMALL_AUDIO_DIM,
        num_audio_layers=AUDIO_LAYERS + 1,
        audio_inject_layers=tuple(range(max(0, sizes.layers - 3), sizes.layers)),
        expert_hidden_dim=sizes.expert_hidden_dim,
        hoi_branch=True,
    )
    weights = dict(transformer.named_parameters())
    with torch.no_grad():
        for name, weight in weights.items():
            if name.startswith("blocks.") and name.endswith("scale_shift_table"):
                weight.zero_()
                weight[:, [2, 5]] = 1.0  # the gates of attention and feed-forward
            elif name.startswith(ZERO_AT_START) or ("_expert.net.2" in name or "attn2.to_out.0" in name):
                weight.zero_()
    return transformer


def small_card(recipe: SmallRecipe) -> CheckpointCard:
    size = f"{recipe.width}x{recipe.height}"
    return CheckpointCard(
        name=recipe.name,
        trained=False,
        sizes=(size,),
        min_side=min(recipe.width, recipe.height),
        max_pixels=recipe.width * recipe.height,
        defaults=CheckpointDefaults(
            num_inference_steps=recipe.num_inference_steps,
            guidance_scale=recipe.guidance_scale,
            flow_shift=recipe.flow_shift,
            negative_prompt="",
        ),
        pose=False,
        license="Apache-2.0",
        sources={"data": f"the procedural world of model/training, seed {recipe.seed}"},
    )


def encode_clips(
    recipe: SmallRecipe,
    output: Path,
    pipeline_folder: Path,
    indices: range,
    device: str = "cpu",
    workers: int = 0,
) -> None:
    """Fill `output`/cache. Safe to run beside training, which finds new clips as they come."""
    encoder = ClipEncoder(load_pipeline(pipeline_folder, device), torch.device(device))
    fill_cache(
        output / "cache",
        SyntheticClips(recipe),
        encoder,
        indices,
        first_clips_too=False,
        workers=workers,
    )


def _log_step(step: Step) -> None:
    if step.step % 20 == 0:
        log.info("step %d: %s", step.step, {k: v for k, v in vars(step).items() if k != "step"})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument(
        "--encode", metavar="FIRST:LAST", help="only encode these clips, beside a running training"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--workers", type=int, default=1, help="processes that draw ahead")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    recipe = SmallRecipe.read(arguments.recipe)
    output, device, workers = arguments.output, arguments.device, arguments.workers
    if arguments.encode:
        first, last = (int(number) for number in arguments.encode.split(":"))
        encode_clips(recipe, output, output / "pipeline", range(first, last), device, workers)
        return
    log.info("the checkpoint is in %s", build_small(recipe, output, device, workers))


if __name__ == "__main__":
    main()
