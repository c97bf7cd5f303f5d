"""What one forward launches, moves and multiplies, counted on tensors that have shapes but no data.

An operation that makes no new tensor but only another view of one is free. Every other one is a launch; it
reads its inputs and writes its outputs once, at the size they have, broadcast inputs at the size they are
stored in. Matrix products, convolutions and attention are launches, too, but their traffic is not counted: it
hides behind their arithmetic.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from contract.video import CLIP_LATENT_FRAMES
from model.bench.clip import ClipShape, Draw, conditioning_inputs
from model.transformer import CoInteractTransformer3DModel

ARITHMETIC = ("addmm", "mm", "bmm", "baddbmm", "convolution", "attention", "linear_gelu")
"""Parts of names: operations bound by arithmetic."""

ONE_KERNEL = (F.rms_norm,)
"""A GPU runs each of these as one kernel; on tensors without data they fall into several operations."""

OPERANDS = {"aten::mm": (0, 1), "aten::addmm": (1, 2), "cointeract::linear_gelu": (0, 1)}
"""Which arguments of a matrix product are multiplied."""

TRANSPOSED = "cointeract::linear_gelu"
"""It takes its weight as a linear layer stores it."""


@dataclass(frozen=True, order=True)
class Product:
    """A matrix product (rows, inner) × (inner, columns)."""

    rows: int
    inner: int
    columns: int

    @property
    def flop(self) -> int:
        return 2 * self.rows * self.inner * self.columns


@dataclass(frozen=True, order=True)
class Attention:
    """Attention of `queries` tokens to `keys`, of so many samples and heads."""

    samples: int
    heads: int
    queries: int
    keys: int
    head_dim: int

    @property
    def flop(self) -> int:
        return 4 * self.samples * self.heads * self.queries * self.keys * self.head_dim


@dataclass(frozen=True)
class ForwardCounts:
    """One forward."""

    tokens: int
    launches: collections.Counter[str]
    bytes: collections.Counter[str]
    """Outside matrix products and attention."""
    products: collections.Counter[Product]
    attentions: collections.Counter[Attention]

    @property
    def matrix_flop(self) -> int:
        return sum(product.flop * times for product, times in self.products.items())

    @property
    def attention_flop(self) -> int:
        return sum(attention.flop * times for attention, times in self.attentions.items())


class Traffic(TorchDispatchMode):
    """Counts launches and bytes by operation, and the shapes of matrix products and attention."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.launches: collections.Counter[str] = collections.Counter()
        self.bytes: collections.Counter[str] = collections.Counter()
        self.products: collections.Counter[Product] = collections.Counter()
        self.attentions: collections.Counter[Attention] = collections.Counter()
        self.silent = False

    def add(self, name: str, arguments: Any, result: Any) -> None:
        """Count one launch."""
        read = {id(value): value for value in tree_iter(arguments) if isinstance(value, torch.Tensor)}
        written = [value for value in tree_iter(result) if isinstance(value, torch.Tensor)]
        self.launches[name] += 1
        if not any(part in name for part in ARITHMETIC):
            self.bytes[name] += sum(stored_bytes(value) for value in (*read.values(), *written))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self.silent and does_work(func, (args, kwargs), result):
            name = func.name().removesuffix(".default")
            self.add(name, (args, kwargs), result)
            if name in OPERANDS:
                self.products[_product(name, *(args[place].shape for place in OPERANDS[name]))] += 1
            elif "attention" in name:
                samples, heads, queries, head_dim = args[0].shape
                self.attentions[Attention(samples, heads, queries, args[1].shape[-2], head_dim)] += 1
        return result


class Composites(TorchFunctionMode):
    """Counts what is one kernel on a GPU as one."""

    def __init__(self, traffic: Traffic) -> None:
        super().__init__()
        self.traffic = traffic

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in ONE_KERNEL:
            return func(*args, **(kwargs or {}))
        self.traffic.silent = True
        result = func(*args, **(kwargs or {}))
        self.traffic.silent = False
        self.traffic.add(func.__name__, (args, kwargs), result)
        return result


def _product(name: str, left: torch.Size, right: torch.Size) -> Product:
    columns = right[0] if name == TRANSPOSED else right[1]
    return Product(prod(left[:-1]), left[-1], columns)


def stored_bytes(tensor: torch.Tensor) -> int:
    """Bytes behind a tensor's elements; those repeated by a stride of 0 count once."""
    count = 1
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= length if stride else 1
    return count * tensor.element_size()


def does_work(func: Any, arguments: Any, result: Any) -> bool:
    """Whether an operation launches a kernel: it writes into an argument, or into memory of its own."""
    if func.namespace == "prim" or "empty" in func.name():
        return False
    if any(
        argument.alias_info is not None and argument.alias_info.is_write
        for argument in func._schema.arguments
    ):
        return True
    given = {
        value.untyped_storage()._cdata for value in tree_iter(arguments) if isinstance(value, torch.Tensor)
    }
    made = [value for value in tree_iter(result) if isinstance(value, torch.Tensor)]
    return any(value.untyped_storage()._cdata not in given for value in made)


def without_data(dtype: torch.dtype) -> Draw:
    """Tensors of the clip to count with."""
    return lambda *shape: torch.empty(shape, dtype=dtype)


def model_without_data(config: dict[str, Any], dtype: torch.dtype) -> CoInteractTransformer3DModel:
    """The network of a configuration in `dtype`, but for the parts that stay in float32.

    Call it, and the model, under `FakeTensorMode(allow_non_fake_inputs=True)`.
    """
    with building_in(dtype):
        model: CoInteractTransformer3DModel = CoInteractTransformer3DModel.from_config(config)
    return model


@contextmanager
def building_in(dtype: torch.dtype) -> Iterator[None]:
    """Networks made meanwhile have parameters of `dtype`. Without data they cannot be cast afterwards."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@torch.no_grad()
def count_on(model: CoInteractTransformer3DModel, shape: ClipShape, timestep: float) -> ForwardCounts:
    """One forward of a model without data; see there."""
    draw = without_data(model.patch_embedding.weight.dtype)
    inputs = conditioning_inputs(model, shape, draw)
    prepared = model.prepare_conditioning(inputs, num_latent_frames=CLIP_LATENT_FRAMES, keep_key_values=True)
    target = draw(*shape.latents(CLIP_LATENT_FRAMES))
    with Traffic() as traffic, Composites(traffic):
        model(target, timestep, prepared)
    return ForwardCounts(
        prepared.layout.video, traffic.launches, traffic.bytes, traffic.products, traffic.attentions
    )


def count_forward(
    model: CoInteractTransformer3DModel, shape: ClipShape, timestep: float, dtype: torch.dtype
) -> ForwardCounts:
    """One forward of a network like `model` in `dtype`. Takes seconds and no memory to speak of."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        return count_on(model_without_data(dict(model.config), dtype), shape, timestep)
