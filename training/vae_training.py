"""Trains a small `AutoencoderKLWan` on both streams of the procedural world.

The loss is L1 on pixels and on their differences, plus a little KL. Faces, hands and products weigh more. At
the end the latents' statistics are measured and written into the config, where the pipeline reads them.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from pydantic import BaseModel, ConfigDict
from torch import nn

from contract.video import CLIP_FRAMES
from model.media.images import place_product

from .prefetch import prefetched
from .synthetic import make_video
from .world import ACTIONS

log = logging.getLogger(__name__)

SAVE_SECONDS = 180.0
STATE_FILE = "vae-state.pt"
DETAIL_WEIGHT = 2.5
"""How much more faces, hands and products weigh than the background."""

SMALL_VAE: dict[str, object] = {
    "base_dim": 16,
    "dim_mult": [1, 4, 4],
    "num_res_blocks": 1,
    "is_residual": True,  # averaging shortcuts around each level, as in Wan 2.2: learns several times faster
    "temperal_downsample": [True, True],
    # Pixels are folded 2×2 into channels first: the costly full-resolution layers disappear.
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
    "latents_mean": [0.0] * 16,
    "latents_std": [1.0] * 16,
}


OPPONENT_COLOURS = torch.tensor([[1.0, 1.0, 1.0], [1.5, 0.0, -1.5], [1.5, -3.0, 1.5]]) / 3**0.5
"""Brightness, red against blue, green against magenta.

Hue varies less than brightness, and the third axis least of all. With equal weights the VAE would leave out
an axis of colour, because that costs least.
"""
INPUT_GAINS = torch.tensor([1.0, 2.0, 4.0])
"""Factors that bring the opponent colours to about the same variance."""


class VAERecipe(BaseModel):
    """How the VAE is trained. Sizes are in pixels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: int = 80
    height: int = 128
    crop: int = 48
    batches: tuple[tuple[int, int], ...] = ((5, 4), (5, 4), (13, 2), (25, 1))
    """(frames, crops) of successive steps.

    Most clips are short. Some are long enough for the causal caches to reach their steady state.
    """
    steps: int = 3000
    decoder_steps: int = 0
    """Steps that train the decoder alone, after `steps`."""
    lips_weight: float = 6.0
    """Weight of the lower half of faces while the decoder is trained alone; the background has 1.

    A decoder that blurs the lips makes the speech invisible.
    """
    learning_rate: float = 8e-4
    """A rate several times higher learns brightness faster, but loses the weakest axis of colour.

    The gradients of such small batches are too noisy for it.
    """
    weight_decay: float = 0.2
    """Weight decay of the convolution kernels, which would grow twentyfold without it."""
    kl_weight: float = 2e-4
    ema: float = 0.998
    seed: int = 0
    measured_videos: int = 24
    """Number of videos that the latents' statistics are measured on."""


class MatrixViews:
    """Convolution kernels viewed as matrices (out, in · kernel), because Muon takes only matrices.

    The views share the kernels' memory.
    """

    def __init__(self, weights: Iterable[nn.Parameter]) -> None:
        self._pairs = [(weight, nn.Parameter(weight.data.flatten(1))) for weight in weights]

    @property
    def matrices(self) -> list[nn.Parameter]:
        return [matrix for _, matrix in self._pairs]

    def take_gradients(self) -> None:
        for weight, matrix in self._pairs:
            matrix.grad = None if weight.grad is None else weight.grad.flatten(1)


def train_vae(
    recipe: VAERecipe, output: Path, device: torch.device | str = "cpu", workers: int = 1
) -> AutoencoderKLWan:
    """Train the VAE and save its averaged weights in `output`/vae. A stopped run is resumed.

    The first pass trains encoder and decoder and ends with vae-whole. Its latents are final, so a DiT can
    learn them while the second pass sharpens the decoder alone. `workers` processes draw the next crops. The
    log is vae-log.jsonl.
    """
    torch.manual_seed(recipe.seed)
    whole = output / "vae-whole"
    if not (whole / "config.json").is_file():
        vae = AutoencoderKLWan(**SMALL_VAE)
        initialise(vae)
        vae = _fit(recipe, vae.to(device), range(recipe.steps), output, workers)
        measure_latents(vae, recipe)
        vae.save_pretrained(whole)
    vae = AutoencoderKLWan.from_pretrained(whole).to(device)
    for part in (vae.encoder, vae.quant_conv):
        part.requires_grad_(False)
    vae = _fit(recipe, vae, range(recipe.steps, recipe.steps + recipe.decoder_steps), output, workers)
    vae.save_pretrained(output / "vae")
    (output / STATE_FILE).unlink(missing_ok=True)
    return vae


def _fit(
    recipe: VAERecipe, vae: AutoencoderKLWan, steps: range, output: Path, workers: int
) -> AutoencoderKLWan:
    """Train the weights that require gradients, with one learning-rate schedule; return their average."""
    output.mkdir(parents=True, exist_ok=True)
    average = copy.deepcopy(vae)
    kernels = [
        weight
        for name, weight in vae.named_parameters()
        # Not the two maps next to the latents: they start as the identity, and lost directions stay lost.
        if weight.requires_grad
        and weight.ndim >= 4
        and min(weight.shape[0], weight[0].numel()) > 1
        and "quant_conv" not in name
    ]
    views = MatrixViews(kernels)
    chosen = {id(weight) for weight in kernels}
    rest = [weight for weight in vae.parameters() if weight.requires_grad and id(weight) not in chosen]
    optimizers: tuple[torch.optim.Optimizer, ...] = (
        torch.optim.Muon(
            views.matrices,
            lr=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(rest, lr=recipe.learning_rate / 3, betas=(0.9, 0.99), weight_decay=0.0),
    )
    state = output / STATE_FILE
    remaining = range(_resume(state, steps, vae, average, optimizers), steps.stop)
    saved, recent = time.monotonic(), list[float]()
    crops = prefetched(partial(draw_crops, recipe), remaining, workers)
    with (output / "vae-log.jsonl").open("a") as curve:
        for step, drawn in zip(remaining, crops, strict=True):
            done = step - steps.start
            fall = 0.02 + 0.49 * (1 + math.cos(math.pi * done / len(steps)))
            for optimizer, rate in zip(optimizers, (1.0, 1 / 3), strict=True):
                for group in optimizer.param_groups:
                    group["lr"] = recipe.learning_rate * rate * fall * min(1.0, (done + 1) / 20)
            pixels, weights = (part.to(vae.device) for part in as_pixels(*drawn))
            torch.manual_seed(recipe.seed + step)
            posterior = vae.encode(pixels).latent_dist
            decoded = vae.decode(posterior.sample(), return_dict=False)[0]
            l1, kl = vae_losses(decoded, pixels, weights, posterior.mean, posterior.logvar)
            vae.zero_grad(set_to_none=True)
            (l1 + recipe.kl_weight * kl).backward()
            nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
            views.take_gradients()
            for optimizer in optimizers:
                optimizer.step()
            with torch.no_grad():
                decay = min(recipe.ema, (1 + done) / (10 + done))
                for kept, new in zip(average.parameters(), vae.parameters(), strict=True):
                    kept.lerp_(new, 1 - decay)
            recent.append(l1.item())
            if step % 25 == 0:
                entry = {"step": step, "l1": round(sum(recent) / len(recent), 4), "kl": round(kl.item(), 4)}
                recent.clear()
                curve.write(json.dumps(entry) + "\n")
                curve.flush()
                log.info("vae %s", entry)
            if time.monotonic() - saved > SAVE_SECONDS:
                _save(state, step + 1, vae, average, optimizers)
                saved = time.monotonic()
    return average


def _save(
    path: Path,
    step: int,
    vae: AutoencoderKLWan,
    average: AutoencoderKLWan,
    optimizers: Sequence[torch.optim.Optimizer],
) -> None:
    parts = [part.state_dict() for part in (vae, average, *optimizers)]
    partial = path.with_suffix(".partial")
    torch.save({"step": step, "parts": parts}, partial)
    partial.rename(path)


def _resume(
    path: Path,
    steps: range,
    vae: AutoencoderKLWan,
    average: AutoencoderKLWan,
    optimizers: Sequence[torch.optim.Optimizer],
) -> int:
    """Load the state that `_save` wrote within `steps`, if there is one. Returns the next step."""
    saved = torch.load(path, weights_only=True) if path.is_file() else None
    if saved is None or not steps.start < saved["step"] <= steps.stop:
        return steps.start
    for part, state in zip((vae, average, *optimizers), saved["parts"], strict=True):
        part.load_state_dict(state)
    return int(saved["step"])


@torch.no_grad()
def initialise(vae: AutoencoderKLWan) -> None:
    """Make the untrained VAE pass pixels through its averaging shortcuts, with almost noise-free latents.

    Training is faster from there. Residual branches start at 0. The first layer turns the folded pixels into
    opponent colours of equal variance, as a weak colour would drown in what the branches add later. Its spare
    channels are constant, because RMS norms would otherwise remove a pixel's brightness.
    """
    quiet = ("conv2.weight", "conv2.bias", "resample.1.weight", "resample.1.bias", "proj.weight", "proj.bias")
    for name, weight in vae.named_parameters():
        if name.endswith(quiet):
            weight.zero_()
    first, channels = vae.encoder.conv_in, vae.config.in_channels
    first.weight.zero_()
    first.bias.zero_()
    first.bias[channels:] = 1.0
    places = channels // 3  # of a folded pixel; channels are (colour, place)
    colours = INPUT_GAINS[:, None] * F.normalize(OPPONENT_COLOURS, dim=1)
    for place in range(places):
        first.weight[place:channels:places, place::places, -1, 1, 1] = colours
    latents = vae.config.z_dim
    vae.quant_conv.weight.zero_()
    vae.quant_conv.bias.zero_()
    vae.quant_conv.bias[latents:] = -6.0  # log variance
    vae.post_quant_conv.weight.zero_()
    vae.post_quant_conv.bias.zero_()
    for channel in range(latents):
        vae.quant_conv.weight[channel, channel] = 1.0
        vae.post_quant_conv.weight[channel, channel] = 1.0


def vae_losses(
    decoded: torch.Tensor,
    pixels: torch.Tensor,
    weights: torch.Tensor,
    mean: torch.Tensor,
    logvar: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted L1 of colours and of their spatial differences, and KL per pixel.

    Pixels are (B, 3, T, H, W) in -1..1.
    """
    difference = torch.einsum("oc,bcthw->bothw", OPPONENT_COLOURS.to(pixels), decoded - pixels)
    error = (difference.abs() * weights).mean()
    for axis in (3, 4):
        inner = weights.narrow(axis, 1, weights.shape[axis] - 1)
        error = error + 0.5 * (difference.diff(dim=axis).abs() * inner).mean()
    logvar = logvar.clamp(-20, 10)
    kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum() / pixels[:, 0].numel()
    return error, kl


def draw_crops(recipe: VAERecipe, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Crops (B, T, crop, crop, 3) uint8, and the weight of each pixel (B, T, crop, crop, 1) float32."""
    rng = np.random.default_rng([recipe.seed, step, 5])
    frames, crops = recipe.batches[step % len(recipe.batches)]
    pixels, weights = [], []
    for _ in range(crops):
        end = int(rng.integers(frames, CLIP_FRAMES))
        structure = rng.random() < 0.25
        video = make_video(
            int(rng.integers(1 << 30)),
            recipe.width,
            recipe.height,
            actions=[ACTIONS[rng.integers(len(ACTIONS))]],
            shown=range(end - frames, end),
            synthesiser="formant",
            with_structure=structure,
        )
        clip = (video.structure if structure else video.frames).copy()
        first = rng.random()
        if not structure and first < 0.3:  # clips without motion start with the person's photo
            clip[0] = np.asarray(video.person_image)
        elif not structure and first < 0.45:
            clip[0] = np.asarray(place_product(video.product_image, recipe.width, recipe.height))
        weight = np.ones((*clip.shape[:3], 1), np.float32)
        for i, boxes in enumerate(video.boxes[end - frames : end]):
            for x1, y1, x2, y2 in (
                boxes.face,
                boxes.right_hand,
                boxes.left_hand,
                boxes.product or boxes.face,
            ):
                weight[i, y1:y2, x1:x2] = DETAIL_WEIGHT
            if step >= recipe.steps:
                x1, y1, x2, y2 = boxes.face
                weight[i, (y1 + y2) // 2 : y2, x1:x2] = recipe.lips_weight
        y = int(rng.integers(recipe.height - recipe.crop + 1))
        x = int(rng.integers(recipe.width - recipe.crop + 1))
        pixels.append(clip[:, y : y + recipe.crop, x : x + recipe.crop])
        weights.append(weight[:, y : y + recipe.crop, x : x + recipe.crop])
    return np.stack(pixels), np.stack(weights)


def as_pixels(crops: np.ndarray, weights: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels (B, 3, T, crop, crop) in -1..1 and weights (B, 1, T, crop, crop)."""
    pixels = torch.from_numpy(crops).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    return pixels, torch.from_numpy(weights).permute(0, 4, 1, 2, 3)


@torch.no_grad()
def measure_latents(vae: AutoencoderKLWan, recipe: VAERecipe) -> None:
    """Measure each latent channel's mean and standard deviation on RGB videos; write them into the config."""
    latents = []
    for seed in range(recipe.measured_videos):
        frames = make_video(
            seed, recipe.width, recipe.height, shown=range(33), synthesiser="formant", with_structure=False
        ).frames
        pixels = torch.from_numpy(frames).permute(3, 0, 1, 2).float()[None].to(vae.device) / 127.5 - 1
        latents.append(vae.encode(pixels).latent_dist.mode())
    joined = torch.cat(latents).transpose(0, 1).flatten(1)  # (C, values)
    vae.register_to_config(
        latents_mean=joined.mean(dim=1).tolist(), latents_std=joined.std(dim=1).clamp(min=1e-3).tolist()
    )


@torch.no_grad()
def reconstruction_psnr(vae: AutoencoderKLWan, recipe: VAERecipe) -> float:
    """Mean PSNR in dB over the first second of held-out videos."""
    values = []
    for seed in range(max(1, recipe.measured_videos // 3)):
        frames = make_video(
            seed, recipe.width, recipe.height, shown=range(25), split="heldout", with_structure=False
        ).frames
        pixels = torch.from_numpy(frames).permute(3, 0, 1, 2).float()[None].to(vae.device) / 127.5 - 1
        decoded = vae.decode(vae.encode(pixels).latent_dist.mode(), return_dict=False)[0].clamp(-1, 1)
        values.append(10 * math.log10(4 / F.mse_loss(decoded, pixels).item()))
    return sum(values) / len(values)
