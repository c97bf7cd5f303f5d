"""Chooses between the GPU kernel of a fused operation and its reference in plain PyTorch.

Every operation is a `torch.library` custom op, so torch.compile, fake tensors and the dispatcher see a single
launch. The reference runs on everything but a GPU with Triton. It also runs whenever gradients are enabled,
because the op has none.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

HAS_TRITON = importlib.util.find_spec("triton") is not None


def fused(
    reference: Callable[Parameters, Result], fake: Callable[..., Result], kernel: Callable[..., Result]
) -> Callable[Parameters, Result]:
    """The operation that `reference` defines, as a single launch where possible.

    Args:
        reference: the op has its name, without `_reference`, and its annotations as the schema.
        fake: returns empty tensors shaped like the result, for the same arguments.
        kernel: computes the same for CUDA tensors.
    """
    name = reference.__name__.removesuffix("_reference")
    op = torch.library.custom_op(f"cointeract::{name}", reference, mutates_args=())
    op.register_fake(fake)
    op.register_kernel("cuda", kernel)

    @functools.wraps(reference)
    def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        run: Callable[Parameters, Result] = reference if torch.is_grad_enabled() else op
        return run(*args, **kwargs)

    return call


def triton_kernel(module: str, name: str, reference: Callable[..., Result]) -> Callable[..., Result]:
    """`name` of `model.kernels.triton.<module>`, imported at the first call; without Triton, `reference`."""
    if not HAS_TRITON:
        return reference

    def launch(*args: Any) -> Result:
        result: Result = getattr(importlib.import_module(f"model.kernels.triton.{module}"), name)(*args)
        return result

    return launch


def empty(states: torch.Tensor) -> torch.Tensor:
    """A contiguous empty tensor shaped like `states`, for fakes."""
    return torch.empty_like(states, memory_format=torch.contiguous_format)
