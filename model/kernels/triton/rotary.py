"""RMS norm and rotation of queries and keys: one read and one write of each."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from model.kernels.triton.launch import TOKENS, WARPS, block_of, cdiv


@triton.jit
def _turn(states, weight, cos, sin, eps, WIDTH: tl.constexpr):
    """Normalised and rotated pairs of one token, all float32."""
    mean_square = tl.sum(states * states, axis=0) / WIDTH
    normed = states * tl.rsqrt(mean_square + eps) * weight
    even, odd = tl.split(tl.reshape(normed, (normed.shape[0] // 2, 2)))
    return tl.reshape(tl.join(even * cos - odd * sin, odd * cos + even * sin), normed.shape)


@triton.jit(do_not_specialize=["query_tokens", "tokens"])
def _norm_rotary_kernel(
    query,
    key,
    query_weight,
    key_weight,
    table,
    query_out,
    key_out,
    query_tokens,
    tokens,
    eps,
    WIDTH: tl.constexpr,
    PAIRS: tl.constexpr,  # per head
    BLOCK: tl.constexpr,
    PER_PROGRAM: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * PER_PROGRAM
    sample = tl.program_id(1).to(tl.int64)
    channels = tl.arange(0, BLOCK)
    inside = channels < WIDTH
    angle = channels % (2 * PAIRS)
    of_query = tl.load(query_weight + channels, mask=inside, other=0.0).to(tl.float32)
    of_key = tl.load(key_weight + channels, mask=inside, other=0.0).to(tl.float32)
    for i in range(PER_PROGRAM):
        token = first + i
        here = token < tokens
        turn = tl.load(table + token * (2 * PAIRS) + angle, mask=inside & here, other=0.0)
        cos, sin = tl.split(tl.reshape(turn, (BLOCK // 2, 2)))
        at = (sample * tokens + token) * WIDTH + channels
        states = tl.load(key + at, mask=inside & here, other=0.0).to(tl.float32)
        result = _turn(states, of_key, cos, sin, eps, WIDTH)
        tl.store(key_out + at, result.to(key_out.dtype.element_ty), mask=inside & here)
        asks = inside & (token < query_tokens)
        at = (sample * query_tokens + token) * WIDTH + channels
        states = tl.load(query + at, mask=asks, other=0.0).to(tl.float32)
        result = _turn(states, of_query, cos, sin, eps, WIDTH)
        tl.store(query_out + at, result.to(query_out.dtype.element_ty), mask=asks)


def launch_norm_rotary(
    query: torch.Tensor,
    key: torch.Tensor,
    query_weight: torch.Tensor,
    key_weight: torch.Tensor,
    table: torch.Tensor,
    heads: int,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `model.kernels.rotary.norm_rotary`."""
    query, key, table = query.contiguous(), key.contiguous(), table.contiguous()
    batch, tokens, width = key.shape
    query_out, key_out = torch.empty_like(query), torch.empty_like(key)
    _norm_rotary_kernel[(cdiv(tokens, TOKENS), batch)](
        query,
        key,
        query_weight,
        key_weight,
        table,
        query_out,
        key_out,
        query.shape[1],
        tokens,
        eps,
        WIDTH=width,
        PAIRS=table.shape[1],
        BLOCK=block_of(width),
        PER_PROGRAM=TOKENS,
        num_warps=WARPS,
    )
    return query_out.unflatten(-1, (heads, -1)), key_out.unflatten(-1, (heads, -1))
