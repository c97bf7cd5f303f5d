"""The VAE's norm and SiLU, written directly after the past frames that a causal convolution needs."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from model.kernels.operation import fused, triton_kernel

SMALLEST_NORM = 1e-12
"""Lower limit of the norm over a pixel's channels, as in `torch.nn.functional.normalize`."""


def _behind(past: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    """An empty tensor for `past` and `frames`, with the memory layout of `frames`."""
    batch, channels, count, height, width = frames.shape
    shape = (batch, channels, past.shape[2] + count, height, width)
    last = frames.is_contiguous(memory_format=torch.channels_last_3d)
    layout = torch.channels_last_3d if last else torch.contiguous_format
    return torch.empty(shape, dtype=frames.dtype, device=frames.device, memory_format=layout)


def norm_silu_reference(
    frames: torch.Tensor, weight: torch.Tensor, past: torch.Tensor, silu: bool
) -> torch.Tensor:
    """frames / rms(frames over channels) · weight, then SiLU if `silu`, computed in float32 and rounded once.

    Args:
        frames: (B, C, T, H, W).
        weight: (C,).
        past: (B, C, P, H, W), copied unchanged to the front.

    Returns:
        (B, C, P + T, H, W).
    """
    result = _behind(past, frames)
    result[:, :, : past.shape[2]] = past
    ours = result[:, :, past.shape[2] :]
    values = frames.float()
    # Not `vector_norm`: over the channels of one pixel it is twenty times as slow on a CPU.
    squares = (values * values).sum(dim=1, keepdim=True)
    scale = squares.clamp_min_(SMALLEST_NORM**2).rsqrt_().mul_(frames.shape[1] ** 0.5)
    direct = ours if ours.dtype is torch.float32 else torch.empty_like(values)
    torch.mul(values, scale, out=direct)
    direct.mul_(weight.float().view(-1, 1, 1, 1))
    if silu:
        F.silu(direct, inplace=True)
    if direct is not ours:
        ours.copy_(direct)
    return result


norm_silu = fused(
    norm_silu_reference,
    fake=lambda frames, weight, past, silu: _behind(past, frames),
    kernel=triton_kernel("vae_norm", "launch_norm_silu", norm_silu_reference),
)
