"""Attention backends by our names: torch's own kernels and those that diffusers dispatches to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers.models.attention_dispatch import (
    AttentionBackendName,
    _check_attention_backend_requirements,
    _maybe_download_kernel_for_backend,
)
from torch.nn.attention import SDPBackend

from contract.attention import AttentionBackend
from model.network.attention import CoInteractAttention

TORCH_KERNELS = {
    AttentionBackend.CUDNN: SDPBackend.CUDNN_ATTENTION,
    AttentionBackend.TORCH_FLASH: SDPBackend.FLASH_ATTENTION,
    AttentionBackend.TORCH_EFFICIENT: SDPBackend.EFFICIENT_ATTENTION,
    AttentionBackend.TORCH_MATH: SDPBackend.MATH,
}
NAME_IN_DIFFUSERS = {
    AttentionBackend.FLASH_2: AttentionBackendName.FLASH,
    AttentionBackend.FLASH_3: AttentionBackendName._FLASH_3,
    AttentionBackend.FLASH_3_HUB: AttentionBackendName._FLASH_3_HUB,
}


@dataclass(frozen=True)
class Dispatch:
    """What a processor needs to reach a backend."""

    name: AttentionBackendName = AttentionBackendName.NATIVE
    torch_kernels: tuple[SDPBackend, ...] = ()
    """Torch's kernels in order of preference; empty: in torch's own order."""


def missing_package(backend: AttentionBackend) -> str:
    """Why a backend from a package of its own cannot be used; empty if it can, or comes with torch."""
    if backend in NAME_IN_DIFFUSERS:
        try:
            _check_attention_backend_requirements(NAME_IN_DIFFUSERS[backend])
        except RuntimeError as error:
            return str(error)
    return ""


def dispatch(backend: AttentionBackend, strict: bool = False) -> Dispatch:
    """How to reach `backend`.

    torch's kernels are reached through plain scaled dot-product attention: diffusers' own way to cuDNN first
    copies queries, keys and values.

    Args:
        strict: without the others that stand in where one of torch's kernels cannot compute something.

    Raises:
        RuntimeError: its package is missing.
    """
    if backend in TORCH_KERNELS:
        first = TORCH_KERNELS[backend]
        others = () if strict else tuple(kernel for kernel in TORCH_KERNELS.values() if kernel is not first)
        return Dispatch(torch_kernels=(first, *others))
    if backend in NAME_IN_DIFFUSERS:
        _check_attention_backend_requirements(NAME_IN_DIFFUSERS[backend])
        _maybe_download_kernel_for_backend(NAME_IN_DIFFUSERS[backend])
        return Dispatch(name=NAME_IN_DIFFUSERS[backend])
    return Dispatch()


def use_backend(network: torch.nn.Module, backend: AttentionBackend) -> None:
    """Let all attention of `network` run on `backend`. Raises RuntimeError if its package is missing."""
    way = dispatch(backend)
    for module in network.modules():
        if isinstance(module, CoInteractAttention):
            processor = module.processor
            processor._attention_backend = way.name
            processor.torch_kernels = way.torch_kernels
