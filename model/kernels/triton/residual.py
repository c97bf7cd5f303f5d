"""Gated residual sums, with the experts' weighted sum or a following LayerNorm in the same pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from model.kernels.triton.launch import TOKENS, WARPS, block_of, layer_norm, place, programs


@triton.jit(do_not_specialize=["tokens", "group", "rows", "routed"])
def _gated_add_kernel(
    states,
    added,
    modulation,
    logits,
    hand,
    face,
    out,
    tokens,
    group,
    rows,
    routed,  # the number of first tokens that have experts
    EXPERTS: tl.constexpr,
    GATE: tl.constexpr,
    VECTORS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    PER_PROGRAM: tl.constexpr,
):
    row, first, end = place(tokens, group, rows, PER_PROGRAM)
    sample = tl.program_id(1).to(tl.int64)
    channels = tl.arange(0, BLOCK)
    inside = channels < WIDTH
    vectors = modulation + (sample * rows + row) * VECTORS * WIDTH + channels
    gate = tl.load(vectors + GATE * WIDTH, mask=inside, other=0.0).to(tl.float32)
    for i in range(PER_PROGRAM):
        token = first + i
        here = inside & (token < end)
        at = (sample * tokens + token) * WIDTH + channels
        extra = tl.load(added + at, mask=here, other=0.0).to(tl.float32)
        if EXPERTS:
            sent = (token < routed) & (token < end)
            scores = logits + (sample * routed + token) * 3
            base_score = tl.load(scores, mask=sent, other=0.0)
            hand_score = tl.load(scores + 1, mask=sent, other=0.0)
            face_score = tl.load(scores + 2, mask=sent, other=0.0)
            largest = tl.maximum(base_score, tl.maximum(hand_score, face_score))
            hand_weight = tl.exp(hand_score - largest)
            face_weight = tl.exp(face_score - largest)
            total = tl.exp(base_score - largest) + hand_weight + face_weight
            of_expert = (sample * routed + token) * WIDTH + channels
            seen = here & sent
            extra += hand_weight / total * tl.load(hand + of_expert, mask=seen, other=0.0).to(tl.float32)
            extra += face_weight / total * tl.load(face + of_expert, mask=seen, other=0.0).to(tl.float32)
        result = tl.load(states + at, mask=here, other=0.0).to(tl.float32) + gate * extra
        tl.store(out + at, result.to(out.dtype.element_ty), mask=here)


@triton.jit(do_not_specialize=["tokens", "group", "rows"])
def _gated_add_norm_kernel(
    states,
    added,
    modulation,
    weight,
    bias,
    total_out,
    normed_out,
    tokens,
    group,
    rows,
    eps,
    GATE: tl.constexpr,
    VECTORS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    PER_PROGRAM: tl.constexpr,
):
    row, first, end = place(tokens, group, rows, PER_PROGRAM)
    sample = tl.program_id(1).to(tl.int64)
    channels = tl.arange(0, BLOCK)
    inside = channels < WIDTH
    vectors = modulation + (sample * rows + row) * VECTORS * WIDTH + channels
    gate = tl.load(vectors + GATE * WIDTH, mask=inside, other=0.0).to(tl.float32)
    gain = tl.load(weight + channels, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(bias + channels, mask=inside, other=0.0).to(tl.float32)
    for i in range(PER_PROGRAM):
        here = inside & (first + i < end)
        at = (sample * tokens + first + i) * WIDTH + channels
        total = tl.load(states + at, mask=here, other=0.0).to(tl.float32)
        total += gate * tl.load(added + at, mask=here, other=0.0).to(tl.float32)
        tl.store(total_out + at, total.to(total_out.dtype.element_ty), mask=here)
        normed = layer_norm(total, inside, eps, WIDTH) * gain + shift
        tl.store(normed_out + at, normed.to(normed_out.dtype.element_ty), mask=here)


def launch_gated_add(
    states: torch.Tensor,
    added: torch.Tensor,
    modulation: torch.Tensor,
    gate: int,
    group: int,
    logits: torch.Tensor | None = None,
    hand: torch.Tensor | None = None,
    face: torch.Tensor | None = None,
) -> torch.Tensor:
    """See `model.kernels.residual.gated_add_reference`."""
    states, added, modulation = states.contiguous(), added.contiguous(), modulation.contiguous()
    batch, tokens, width = states.shape
    rows = modulation.shape[1]
    out = torch.empty_like(states)
    routed = 0 if hand is None else hand.shape[1]
    _gated_add_kernel[(programs(tokens, group, rows), batch)](
        states,
        added,
        modulation,
        *(states if given is None else given.contiguous() for given in (logits, hand, face)),
        out,
        tokens,
        group,
        rows,
        routed,
        EXPERTS=routed > 0,
        GATE=gate,
        VECTORS=modulation.shape[2],
        WIDTH=width,
        BLOCK=block_of(width),
        PER_PROGRAM=TOKENS,
        num_warps=WARPS,
    )
    return out


def launch_gated_add_norm(
    states: torch.Tensor,
    added: torch.Tensor,
    modulation: torch.Tensor,
    gate: int,
    group: int,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `model.kernels.residual.gated_add_norm_reference`."""
    states, added, modulation = states.contiguous(), added.contiguous(), modulation.contiguous()
    batch, tokens, width = states.shape
    rows = modulation.shape[1]
    total, normed = torch.empty_like(states), torch.empty_like(states)
    _gated_add_norm_kernel[(programs(tokens, group, rows), batch)](
        states,
        added,
        modulation,
        weight,
        bias,
        total,
        normed,
        tokens,
        group,
        rows,
        eps,
        GATE=gate,
        VECTORS=modulation.shape[2],
        WIDTH=width,
        BLOCK=block_of(width),
        PER_PROGRAM=TOKENS,
        num_warps=WARPS,
    )
    return total, normed
