"""Pictures for docs/training.md: `python -m training.pictures --checkpoint DIR --out FOLDER`.

router-maps.webp: where the last block's router sees hands and faces in a generated clip.
hoi-stream.webp: both streams generated together, as they were trained. It needs the weights before pruning:
`--state`, the folder that training resumes from.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image

from contract.card import CheckpointDefaults
from model.checkpoints.card_file import read_card
from model.checkpoints.load import load_pipeline
from model.kernels.router import FACE, HAND
from model.pipeline import CoInteractPipeline
from model.sampling import apply_guidance, draw_noise, frames_from_pixels, pixels_from_frames, set_schedule
from model.text_encoder import encode_prompts
from model.transformer import Conditioning, ConditioningInputs
from model.vae import decode_latents, encode_pixels

from .branches import with_hoi_branch
from .clips import CPU, HOI_PROMPT_PREFIX, ClipEncoder, EncodedClip
from .dataset import synthetic_clip
from .saves import saved_steps
from .synthetic import SyntheticVideo, make_video
from .world import ACTIONS, Action

log = logging.getLogger(__name__)

SHOWN_FRAMES = (6, 16, 26, 36, 46, 56, 66, 76)
"""The frames of the clip that make a picture's columns."""
ENLARGED = 2
AVERAGED_WEIGHTS = "custom_checkpoint_1.pkl"
"""accelerate's file of the second object that training registers, which is the moving average."""
TINTS = {HAND: (255, 140, 0), FACE: (40, 110, 255)}


@dataclass(frozen=True)
class CoGenerated:
    """One generated clip."""

    frames: np.ndarray
    """(80, H, W, 3) uint8."""
    hoi: np.ndarray | None
    """(80, H, W, 3) uint8: the HOI stream, if the network has one."""
    routes: np.ndarray
    """(20, rows, columns): the expert that the last block's router chose for each token, in the last step."""
    labels: np.ndarray
    """(20, rows, columns): the experts that the true boxes ask for."""


@torch.no_grad()
def co_generate(
    pipeline: CoInteractPipeline, video: SyntheticVideo, defaults: CheckpointDefaults, seed: int = 0
) -> CoGenerated:
    """Generate the first clip of `video` as the service does, together with the HOI stream if there is one.

    The HOI stream gets no guidance, because silhouettes gain little from it.
    """
    clip = ClipEncoder(pipeline, CPU).encode(synthetic_clip(video, 0), after_motion=False)
    if clip.labels is None:
        raise ValueError("the video has no boxes")
    transformer, with_hoi = pipeline.transformer, bool(pipeline.transformer.config.hoi_branch)
    cond = _condition(pipeline, clip, video.prompts[0], with_hoi)
    silent = replace(clip, audio=torch.zeros_like(clip.audio))
    uncond = _condition(pipeline, silent, defaults.negative_prompt, hoi=False)
    channels, frames, height, width = clip.target.shape
    latents, hoi = (
        draw_noise((1, channels, 1 + frames, height, width), each)[:, :, 1:] for each in (seed, seed + 1)
    )
    schedulers = [FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler.config) for _ in range(2)]
    for scheduler in schedulers:
        set_schedule(scheduler, defaults.num_inference_steps, defaults.flow_shift, CPU)
    for timestep in schedulers[0].timesteps:
        output = transformer(
            latents, timestep, cond, hoi_latents=hoi if with_hoi else None, return_router_logits=True
        )
        velocity = output.sample
        if defaults.guidance_scale != 1.0:
            velocity = apply_guidance(
                velocity, transformer(latents, timestep, uncond).sample, defaults.guidance_scale
            )
        latents = schedulers[0].step(velocity, timestep, latents, return_dict=False)[0]
        if output.hoi_sample is not None:
            hoi = schedulers[1].step(output.hoi_sample, timestep, hoi, return_dict=False)[0]
    logits = cast(tuple[torch.Tensor, ...], output.router_logits)[-1]
    return CoGenerated(
        frames=_decode(pipeline, clip.person[None], latents),
        hoi=_decode_hoi(pipeline, hoi) if with_hoi else None,
        routes=logits[0].argmax(dim=-1).view(clip.labels.shape).numpy(),
        labels=clip.labels.numpy(),
    )


def _condition(pipeline: CoInteractPipeline, clip: EncodedClip, prompt: str, hoi: bool) -> Conditioning:
    prompts = [prompt, f"{HOI_PROMPT_PREFIX} {prompt}"] if hoi else [prompt]
    embeds = encode_prompts(pipeline.text_encoder, pipeline.tokenizer, prompts, CPU)
    inputs = ConditioningInputs(
        person_latents=clip.person[None],
        encoder_hidden_states=embeds[:1],
        audio_embeds=clip.audio[None],
        product_latents=None if clip.product is None else clip.product[None],
        product_scale=clip.product_scale,
        hoi_encoder_hidden_states=embeds[1:] if hoi else None,
    )
    return pipeline.transformer.prepare_conditioning(inputs, num_latent_frames=clip.target.shape[1])


def _decode(pipeline: CoInteractPipeline, before: torch.Tensor, latents: torch.Tensor) -> np.ndarray:
    joint = torch.cat([before, latents], dim=2)
    return frames_from_pixels(decode_latents(pipeline.vae, joint, keep_from=before.shape[2]))


def _decode_hoi(pipeline: CoInteractPipeline, latents: torch.Tensor) -> np.ndarray:
    """Decode the HOI stream. Training encodes it after its own first frame, so that is decoded first."""
    first = _decode(pipeline, latents[:, :, :1], latents)[:1]
    return _decode(
        pipeline, encode_pixels(pipeline.vae, pixels_from_frames(first, CPU, pipeline.vae.dtype)), latents
    )


def load_unpruned(checkpoint: Path, state: Path) -> CoInteractPipeline:
    """Load a checkpoint with the HOI stream that it was trained with, from the newest save in `state`.

    Raises:
        FileNotFoundError: there is no save.
        ValueError: the state is not of a full training of this network.
    """
    saves = saved_steps(state)
    if not saves:
        raise FileNotFoundError(f"{state} holds no save of a training")
    pipeline = load_pipeline(checkpoint)
    transformer = with_hoi_branch(pipeline.transformer)
    average = torch.load(saves[-1] / AVERAGED_WEIGHTS, map_location=CPU, weights_only=True)["shadow_params"]
    weights = list(transformer.parameters())
    if [weight.shape for weight in weights] != [kept.shape for kept in average]:
        raise ValueError(f"{state} does not hold all weights of {checkpoint} with its HOI stream")
    for weight, kept in zip(weights, average, strict=True):
        weight.data = kept.float()
    pipeline.transformer = transformer.eval()
    return pipeline


def router_picture(made: CoGenerated) -> Image.Image:
    """Three rows: generated frames, those tinted by the router's choices, those tinted by the true boxes."""
    rows = [made.frames, _tinted(made.frames, made.routes), _tinted(made.frames, made.labels)]
    return _sheet(rows)


def hoi_picture(made: CoGenerated, video: SyntheticVideo) -> Image.Image:
    """Three rows: generated frames, the generated HOI stream, the true HOI stream."""
    if made.hoi is None:
        raise ValueError("the network has no HOI stream")
    return _sheet([made.frames, made.hoi, video.structure])


def _tinted(frames: np.ndarray, experts: np.ndarray) -> np.ndarray:
    """Frames with hand and face tokens tinted. One latent frame covers four frames."""
    _, height, width, _ = frames.shape
    latent_frames, rows, columns = experts.shape
    whole = (
        experts.repeat(len(frames) // latent_frames, 0).repeat(height // rows, 1).repeat(width // columns, 2)
    )
    tinted = frames.astype(np.float32)
    for expert, color in TINTS.items():
        chosen = whole == expert
        tinted[chosen] = 0.45 * tinted[chosen] + 0.55 * np.array(color)
    return tinted.astype(np.uint8)


def _sheet(rows: Sequence[np.ndarray]) -> Image.Image:
    gap = np.full((rows[0].shape[1], 2, 3), 255, np.uint8)
    lines = []
    for row in rows:
        line = np.concatenate([part for frame in SHOWN_FRAMES for part in (row[frame], gap)], axis=1)
        lines += [line, np.full((2, line.shape[1], 3), 255, np.uint8)]
    sheet = Image.fromarray(np.concatenate(lines))
    return sheet.resize((sheet.width * ENLARGED, sheet.height * ENLARGED), Image.Resampling.LANCZOS)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--state", type=Path, help="state/ of the training that made it")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=15, help="of the held-out video")
    parser.add_argument("--action", choices=ACTIONS, default="lift_right")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    card = read_card(options.checkpoint)
    width, height = (int(side) for side in card.sizes[0].split("x"))
    actions = [cast(Action, options.action)]
    video = make_video(options.seed, width, height, actions=actions, split="heldout", synthesiser="formant")
    if options.state is None:
        pipeline = load_pipeline(options.checkpoint)
    else:
        pipeline = load_unpruned(options.checkpoint, options.state)
    made = co_generate(pipeline, video, card.defaults)
    options.out.mkdir(parents=True, exist_ok=True)
    pictures = {"router-maps.webp": router_picture(made)}
    if made.hoi is not None:
        pictures["hoi-stream.webp"] = hoi_picture(made, video)
    for name, picture in pictures.items():
        picture.save(options.out / name, quality=85)
        log.info("%s", options.out / name)


if __name__ == "__main__":
    main()
