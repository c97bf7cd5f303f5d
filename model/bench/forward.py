"""One forward of the transformer: how long it takes, and how long its arithmetic alone would."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from contract.video import CLIP_LATENT_FRAMES
from model.bench.clip import ClipShape, Draw, conditioning_inputs
from model.bench.counting import Attention, ForwardCounts, Product, count_forward
from model.bench.timing import Spent, peak_memory, spend
from model.network.attention import CoInteractAttention
from model.pipeline import CoInteractPipeline
from model.transformer import CoInteractTransformer3DModel

MEASURED_TIMESTEPS = (500.0, 950.0)
"""With experts, and without."""


@dataclass(frozen=True)
class ForwardFigures:
    """One forward, of one of the two passes of a step with guidance."""

    size: str
    timestep: float
    tokens: int
    spent: Spent
    matrix_flop: int
    attention_flop: int
    floor_seconds: float
    """What its matrix products and attention take alone, each shape at the best rate measured in this run."""
    floor_share: float
    """That of the whole. 1 would be a forward of nothing else."""
    teraflops: float
    """Reached by the whole forward, per second as in the floor: of the GPU, or of one CPU core."""
    matrix_teraflops: float
    """Of the products alone."""
    attention_teraflops: float
    launches: int
    elementwise_bytes: int
    """Read and written outside matrix products and attention."""
    peak_bytes: int | None
    """Memory, weights and all."""


def drawing(model: CoInteractTransformer3DModel, device: torch.device) -> Draw:
    """Random tensors as the network takes them. Any numbers do, but NaN are slower on a CPU."""
    generator = torch.Generator(device).manual_seed(0)
    dtype = model.dtype
    return lambda *shape: torch.randn(shape, generator=generator, device=device).to(dtype)


def ready_forward(pipeline: CoInteractPipeline, shape: ClipShape) -> Callable[[float], torch.Tensor]:
    """A forward at a timestep as the pipeline does it, with all that a clip's steps share prepared."""
    model, device = pipeline.transformer, pipeline.vae.device
    draw = drawing(model, device)
    with torch.no_grad():
        conditioning = model.prepare_conditioning(
            conditioning_inputs(model, shape, draw),
            num_latent_frames=CLIP_LATENT_FRAMES,
            keep_key_values=pipeline.streams.transformer is None,
        )
    target = draw(*shape.latents(CLIP_LATENT_FRAMES))

    @torch.no_grad()
    def forward(timestep: float) -> torch.Tensor:
        sample: torch.Tensor = model(target, timestep, conditioning).sample
        return sample

    return forward


def measure_forward(
    pipeline: CoInteractPipeline, shape: ClipShape, timestep: float, rounds: int
) -> ForwardFigures:
    """Time the forward and, in the same run, its arithmetic alone."""
    model, device = pipeline.transformer, pipeline.vae.device
    counts = count_forward(model, shape, timestep, model.dtype)
    forward = ready_forward(pipeline, shape)
    with peak_memory(device) as peak:
        spent = spend(partial(forward, timestep), device, rounds)
    del forward
    matrix = _seconds_of_products(counts, device, model.dtype, rounds)
    attention = _seconds_of_attention(counts, model, device, rounds)
    floor = matrix + attention
    return ForwardFigures(
        size=shape.size,
        timestep=timestep,
        tokens=counts.tokens,
        spent=spent,
        matrix_flop=counts.matrix_flop,
        attention_flop=counts.attention_flop,
        floor_seconds=floor,
        floor_share=floor / spent.on(device),
        teraflops=(counts.matrix_flop + counts.attention_flop) / spent.on(device) / 1e12,
        matrix_teraflops=counts.matrix_flop / matrix / 1e12,
        attention_teraflops=counts.attention_flop / attention / 1e12,
        launches=counts.launches.total(),
        elementwise_bytes=counts.bytes.total(),
        peak_bytes=peak.bytes,
    )


@torch.no_grad()
def _seconds_of_products(
    counts: ForwardCounts, device: torch.device, dtype: torch.dtype, rounds: int
) -> float:
    def seconds(product: Product) -> float:
        states = torch.randn(product.rows, product.inner, device=device, dtype=dtype)
        weight = torch.randn(product.columns, product.inner, device=device, dtype=dtype)
        bias = torch.zeros(product.columns, device=device, dtype=dtype)
        return spend(partial(F.linear, states, weight, bias), device, rounds).best_on(device)

    return sum(seconds(product) * times for product, times in counts.products.items())


@torch.no_grad()
def _seconds_of_attention(
    counts: ForwardCounts, model: CoInteractTransformer3DModel, device: torch.device, rounds: int
) -> float:
    processor = next(m for m in model.modules() if isinstance(m, CoInteractAttention)).processor

    def seconds(attention: Attention) -> float:
        def states(tokens: int) -> torch.Tensor:
            shape = (attention.samples, tokens, attention.heads, attention.head_dim)
            return torch.randn(shape, device=device, dtype=model.dtype)

        keys = states(attention.keys)
        run = partial(processor.attend, states(attention.queries), keys, keys)
        return spend(run, device, rounds).best_on(device)

    return sum(seconds(attention) * times for attention, times in counts.attentions.items())
