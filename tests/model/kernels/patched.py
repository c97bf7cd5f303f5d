"""The network with its fused operations replaced, wherever its modules have imported them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import model.transformer
from model.kernels import modulation, residual, rms_norm, rotary, router
from model.kernels.triton import modulation as triton_modulation
from model.kernels.triton import residual as triton_residual
from model.kernels.triton import rms_norm as triton_rms_norm
from model.kernels.triton import rotary as triton_rotary
from model.kernels.triton import router as triton_router
from model.network import attention, audio_injection, block, moe

MODULES = (attention, audio_injection, block, moe, model.transformer)
OPERATIONS = {
    "rms_norm": (rms_norm.rms_norm_reference, triton_rms_norm.launch_rms_norm),
    "norm_rotary": (rotary.norm_rotary_reference, triton_rotary.launch_norm_rotary),
    "norm_modulate": (modulation.norm_modulate_reference, triton_modulation.launch_norm_modulate),
    "add_norm_modulate": (modulation.add_norm_modulate_reference, triton_modulation.launch_add_norm_modulate),
    "gated_add": (residual.gated_add_reference, triton_residual.launch_gated_add),
    "gated_add_norm": (residual.gated_add_norm_reference, triton_residual.launch_gated_add_norm),
    "router_logits": (router.router_logits_reference, triton_router.launch_router_logits),
}


def replace_operations(
    monkeypatch: pytest.MonkeyPatch,
    replacement: Callable[[Callable[..., Any], Callable[..., Any]], Callable[..., Any]],
) -> None:
    """Put `replacement(reference, kernel)` in every operation's place."""
    for name, (reference, kernel) in OPERATIONS.items():
        users = [module for module in MODULES if hasattr(module, name)]
        assert users, name
        for module in users:
            monkeypatch.setattr(module, name, replacement(reference, kernel))
