"""Flow-matching schedule, guidance, noise, and the step between pixels and frames (official code)."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler


def set_schedule(
    scheduler: FlowMatchEulerDiscreteScheduler,
    num_inference_steps: int,
    flow_shift: float,
    device: torch.device,
) -> None:
    """Prepare `scheduler` for a clip: sigmas shift·s / (1 + (shift-1)·s) for s in linspace(1, 0, N+1).

    diffusers' own default grid ends at the smallest training sigma instead of 1/N, hence explicit sigmas.
    """
    if num_inference_steps < 1:
        raise ValueError(f"num_inference_steps must be at least 1, not {num_inference_steps}")
    if not flow_shift > 0:
        raise ValueError(f"flow_shift must be positive, not {flow_shift}")
    scheduler.set_shift(flow_shift)
    grid = torch.linspace(1.0, 0.0, num_inference_steps + 1)[:-1]
    scheduler.set_timesteps(sigmas=grid.tolist(), device=device)


def apply_guidance(cond: torch.Tensor, uncond: torch.Tensor, guidance_scale: float) -> torch.Tensor:
    """Classifier-free guidance, in fp32: uncond + g·(cond - uncond)."""
    cond, uncond = cond.float(), uncond.float()
    return uncond + guidance_scale * (cond - uncond)


def draw_noise(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Standard normal noise, fp32, drawn on the CPU so that a seed gives the same video on every device."""
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float32)


def levels(pixels: torch.Tensor) -> torch.Tensor:
    """VAE output (1, 3, T, H, W) in -1..1 → (T, H, W, 3) uint8; cut, not rounded (official code)."""
    pixels = pixels[0].permute(1, 2, 3, 0)
    return ((pixels.float() + 1.0) * 127.5).clamp(0, 255).to(torch.uint8)


def frames_from_pixels(pixels: torch.Tensor) -> np.ndarray:
    """VAE output (1, 3, T, H, W) in -1..1 → frames (T, H, W, 3)."""
    return levels(pixels).cpu().numpy()


def pixels_from_frames(frames: np.ndarray, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """uint8 frames (T, H, W, 3) → VAE input (1, 3, T, H, W) in -1..1."""
    pixels = torch.tensor(frames, device=device).to(torch.float32)
    return (pixels * (2.0 / 255.0) - 1.0).permute(3, 0, 1, 2)[None].to(dtype)
