"""RMS norm over each pixel's channels, weight and SiLU on channels-last frames: one read and one write."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from model.kernels.triton.launch import block_of, cdiv

ELEMENTS = 8192
"""Values that one program handles."""

SMALLEST_SQUARE = 1e-24


@triton.jit(do_not_specialize=["pixels", "past_pixels"])
def _norm_silu_kernel(
    frames,
    weight,
    out,
    pixels,  # of all frames of one sample
    past_pixels,
    SMALLEST: tl.constexpr,
    SILU: tl.constexpr,
    ROOT: tl.constexpr,  # of the number of channels
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    PER_PROGRAM: tl.constexpr,
):
    pixel = tl.program_id(0).to(tl.int64) * PER_PROGRAM + tl.arange(0, PER_PROGRAM)
    sample = tl.program_id(1).to(tl.int64)
    channels = tl.arange(0, BLOCK)
    inside = (pixel < pixels)[:, None] & (channels < CHANNELS)[None, :]
    at = (sample * pixels + pixel)[:, None] * CHANNELS + channels[None, :]
    values = tl.load(frames + at, mask=inside, other=0.0).to(tl.float32)
    squares = tl.sum(values * values, axis=1)
    scale = tl.rsqrt(tl.maximum(squares, SMALLEST)) * ROOT
    gain = tl.load(weight + channels, mask=channels < CHANNELS, other=0.0).to(tl.float32)
    values = values * scale[:, None] * gain[None, :]
    if SILU:
        values = values * tl.sigmoid(values)
    to = (sample * (past_pixels + pixels) + past_pixels + pixel)[:, None] * CHANNELS + channels[None, :]
    tl.store(out + to, values.to(out.dtype.element_ty), mask=inside)


def launch_norm_silu(
    frames: torch.Tensor, weight: torch.Tensor, past: torch.Tensor, silu: bool
) -> torch.Tensor:
    """See `model.kernels.vae_norm.norm_silu_reference`."""
    last = torch.channels_last_3d
    frames = frames.contiguous(memory_format=last)
    batch, channels, count, height, width = frames.shape
    shape = (batch, channels, past.shape[2] + count, height, width)
    out = torch.empty(shape, dtype=frames.dtype, device=frames.device, memory_format=last)
    out[:, :, : past.shape[2]] = past
    block = block_of(channels)
    per_program = max(1, ELEMENTS // block)
    pixels = count * height * width
    _norm_silu_kernel[(cdiv(pixels, per_program), batch)](
        frames,
        weight.contiguous(),
        out,
        pixels,
        past.shape[2] * height * width,
        SMALLEST=SMALLEST_SQUARE,
        SILU=silu,
        ROOT=channels**0.5,
        CHANNELS=channels,
        BLOCK=block,
        PER_PROGRAM=per_program,
        num_warps=8,
    )
    return out
