"""The GPU kernels against their references: on a GPU as they are, elsewhere in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from model.kernels.linear_gelu import linear_gelu_cuda, linear_gelu_reference
from model.kernels.modulation import add_norm_modulate_reference, norm_modulate_reference
from model.kernels.residual import gated_add_norm_reference, gated_add_reference
from model.kernels.rms_norm import rms_norm_reference
from model.kernels.rotary import norm_rotary_reference
from model.kernels.router import router_logits_reference
from model.kernels.vae_norm import norm_silu_reference

pytest.importorskip("triton", reason="the GPU kernels are written in Triton")

from model.kernels.triton.modulation import launch_add_norm_modulate, launch_norm_modulate
from model.kernels.triton.residual import launch_gated_add, launch_gated_add_norm
from model.kernels.triton.rms_norm import launch_rms_norm
from model.kernels.triton.rotary import launch_norm_rotary
from model.kernels.triton.router import launch_router_logits
from model.kernels.triton.vae_norm import launch_norm_silu

pytestmark = pytest.mark.slow

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BFLOAT16_ROUNDING = 2.0**-8 if DEVICE == "cuda" else 2.0**-7
"""Relative error of one rounding to bfloat16. A GPU rounds to the nearest; Triton's interpreter cuts off."""

SHAPES = [
    # samples, tokens, of them noisy, heads, head dim
    (1, 1, 1, 1, 6),
    (1, 7, 7, 2, 8),
    (1, 9, 5, 3, 8),
    (2, 10, 4, 2, 24),
    (2, 13, 12, 5, 16),
]


def numbers(seed: int) -> Callable[..., torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    return draw


def check(reference: Callable[..., Any], kernel: Callable[..., Any], *arguments: Any) -> None:
    """In float32 to 1e-6; in bfloat16 against the reference of the same numbers computed in float32."""
    for dtype in (torch.float32, torch.bfloat16):
        given = [value.to(dtype) if isinstance(value, torch.Tensor) else value for value in arguments]
        exact = [value.float() if isinstance(value, torch.Tensor) else value for value in given]
        expected = reference(*exact)
        found = kernel(*(value.to(DEVICE) if isinstance(value, torch.Tensor) else value for value in given))
        if isinstance(expected, torch.Tensor):
            expected, found = (expected,), (found,)
        for right, ours in zip(expected, found, strict=True):
            assert ours.shape == right.shape
            if dtype is torch.float32 or ours.dtype is torch.float32:
                torch.testing.assert_close(ours.cpu(), right, atol=1e-6, rtol=1e-6)
            else:
                assert ours.dtype is dtype
                torch.testing.assert_close(ours.cpu().float(), right, atol=1e-6, rtol=BFLOAT16_ROUNDING)


@pytest.mark.parametrize(("samples", "tokens", "noisy", "heads", "head_dim"), SHAPES)
def test_queries_and_keys_are_normed_and_rotated(samples, tokens, noisy, heads, head_dim) -> None:
    draw, width = numbers(0), heads * head_dim
    angles = draw(tokens, head_dim // 2) * 100
    table = torch.stack([angles.cos(), angles.sin()], dim=-1)

    def with_table(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *given: function(*given, table.to(given[0].device), heads, 1e-6)

    weights = 1 + draw(width) / 4, 1 + draw(width) / 4
    for queries in (tokens, noisy):  # all of them, or in the last block the noisy ones
        states = draw(samples, queries, width), draw(samples, tokens, width)
        check(with_table(norm_rotary_reference), with_table(launch_norm_rotary), *states, *weights)


@pytest.mark.parametrize(("samples", "tokens", "noisy", "heads", "head_dim"), SHAPES)
def test_queries_of_cross_attention_are_normed(samples, tokens, noisy, heads, head_dim) -> None:
    draw, width = numbers(1), heads * head_dim
    check(rms_norm_reference, launch_rms_norm, draw(samples, tokens, width), 1 + draw(width) / 4, 1e-6)


@pytest.mark.parametrize(("samples", "tokens", "noisy", "heads", "head_dim"), SHAPES)
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_tokens_are_modulated_by_their_rows(samples, tokens, noisy, heads, head_dim, rows) -> None:
    draw, width = numbers(2), heads * head_dim
    states, added, modulation = (
        draw(samples, tokens, width),
        draw(samples, tokens, width),
        draw(samples, rows, 6, width),
    )
    group = noisy if rows == 2 else -(-tokens // rows)
    check(norm_modulate_reference, launch_norm_modulate, states, modulation, 3, 4, group, 1e-6)
    check(add_norm_modulate_reference, launch_add_norm_modulate, states, added, modulation, 0, 1, group, 1e-5)
    check(gated_add_reference, launch_gated_add, states, added, modulation, 2, group)
    weight, bias = 1 + draw(width) / 4, draw(width)
    check(
        gated_add_norm_reference,
        launch_gated_add_norm,
        states,
        added,
        modulation,
        5,
        group,
        weight,
        bias,
        1e-6,
    )


@pytest.mark.parametrize(("samples", "tokens", "noisy", "heads", "head_dim"), SHAPES)
def test_experts_are_weighted_and_added_to_noisy_tokens(samples, tokens, noisy, heads, head_dim) -> None:
    draw, width = numbers(3), heads * head_dim
    logits = draw(samples, noisy, 3) * 3
    logits[0, 0] = torch.tensor([1e4, -1e4, -1e4])  # a router without doubt

    def sum_with(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def run(states, added, modulation, hand, face) -> torch.Tensor:
            return function(states, added, modulation, 5, noisy, logits.to(states.device), hand, face)

        return run

    check(
        sum_with(gated_add_reference),
        sum_with(launch_gated_add),
        draw(samples, tokens, width),
        draw(samples, tokens, width),
        draw(samples, 2, 6, width),
        draw(samples, noisy, width),
        draw(samples, noisy, width),
    )


@pytest.mark.parametrize(("samples", "tokens", "noisy", "heads", "head_dim"), SHAPES)
def test_router_logits_are_those_of_the_reference(samples, tokens, noisy, heads, head_dim) -> None:
    draw, width = numbers(4), heads * head_dim
    norm, weight = (1 + draw(width) / 4, draw(width)), draw(3, width) / width**0.5
    check(
        router_logits_reference,
        launch_router_logits,
        draw(samples, tokens, width),
        *norm,
        weight,
        draw(3),
        1e-5,
    )


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize(("samples", "channels", "frames"), [(1, 6, 1), (1, 8, 3), (2, 12, 2)])
@pytest.mark.parametrize("past", [0, 2])
def test_the_vaes_norm_is_written_behind_the_past(samples, channels, frames, past, silu) -> None:
    draw = numbers(6)

    def with_flag(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        return lambda *given: function(*given, silu)

    values = draw(samples, channels, frames, 3, 5)
    values[0, :, 0, 0, 0] = 0  # a black pixel has no direction
    before = draw(samples, channels, past, 3, 5)
    for layout in (torch.contiguous_format, torch.channels_last_3d):
        given = values.contiguous(memory_format=layout)
        check(
            with_flag(norm_silu_reference),
            with_flag(launch_norm_silu),
            given,
            1 + draw(channels) / 4,
            before,
        )


@pytest.mark.skipif(DEVICE == "cpu", reason="cuBLASLt's GELU epilogue exists on GPUs only")
def test_gelu_fused_into_the_matrix_product_is_that_of_the_reference() -> None:
    draw = numbers(5)
    states, weight, bias = draw(2, 9, 64), draw(128, 64) / 8, draw(128)
    check(linear_gelu_reference, linear_gelu_cuda, states, weight, bias)
