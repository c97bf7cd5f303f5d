"""Whether a device multiplies in 8 bits, and the feed-forwards of a network that should."""

from __future__ import annotations

import logging

import torch

from model.kernels.eight_bits import eight_bit_product_cuda, rows_to_eight_bits
from model.network.fp8_linear import Fp8Linear, quantize_rows
from model.transformer import CoInteractTransformer3DModel

logger = logging.getLogger(__name__)

FIRST_CAPABLE = (8, 9)
"""Compute capability of the first GPUs that multiply e4m3: Ada (RTX 40, L40S); then Hopper and Blackwell."""

ALIGNMENT = 16
"""Both sides of a product in 8 bits are multiples of it."""


def why_not_fp8(device: torch.device) -> str | None:
    """Why `device` cannot multiply in 8 bits with a scale per row; None if it can."""
    if device.type != "cuda":
        return "the device is no CUDA GPU"
    capability = torch.cuda.get_device_capability(device)
    if capability < FIRST_CAPABLE:
        return f"compute capability {capability[0]}.{capability[1]} is below 8.9"
    return why_not_tried(device)


@torch.no_grad()
def why_not_tried(device: torch.device) -> str | None:
    """Why a small product fails; None if it does not. Builds of torch differ in what they have for a card."""
    states = torch.ones(ALIGNMENT, ALIGNMENT, device=device, dtype=torch.bfloat16)
    try:
        bits, scale = rows_to_eight_bits(states, gelu=False)
        weight, weight_scale = quantize_rows(states)
        product = eight_bit_product_cuda(
            bits, scale, weight.view(bits.dtype), weight_scale, torch.zeros_like(states[0]), states.dtype
        )
        if float(product.min()) != ALIGNMENT:
            return f"a product of ones is {float(product.min()):g} instead of {ALIGNMENT}"
    except (RuntimeError, NotImplementedError) as error:
        return (str(error).splitlines() or [type(error).__name__])[0]
    return None


def choose_fp8(transformer: CoInteractTransformer3DModel, wanted: bool, device: torch.device) -> bool:
    """Let 8-bit feed-forwards compute in 8 bits if that is wanted and `device` can. Returns whether they do.

    Weights that are not stored in 8 bits are left alone: only a converted checkpoint accepts the loss.
    """
    layers = [module for module in transformer.modules() if isinstance(module, Fp8Linear)]
    if not layers:
        return False
    obstacle = why_not_fp8(device) if wanted else "COINTERACT_FP8_COMPUTE is off"
    if obstacle is None and any(
        side % ALIGNMENT for layer in layers for side in (layer.in_features, layer.out_features)
    ):
        obstacle = f"its layers' widths are no multiples of {ALIGNMENT}"
    for layer in layers:
        layer.computes_in_fp8 = obstacle is None
    if obstacle is None:
        logger.info("feed-forwards compute in 8 bits on %s", device)
    else:
        logger.info("feed-forwards stored in 8 bits compute in %s: %s", transformer.dtype, obstacle)
    return obstacle is None
