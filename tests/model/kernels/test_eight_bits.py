"""Feed-forwards in 8 bits: the kernel, rows that do not disturb each other, a whole network, the choice."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers.models.attention import FeedForward

import model.fp8_choice
from model.fp8_choice import choose_fp8, why_not_fp8, why_not_tried
from model.kernels.eight_bits import (
    EIGHT_BITS,
    LARGEST,
    eight_bit_product,
    eight_bit_product_cuda,
    rows_to_eight_bits,
    rows_to_eight_bits_reference,
)
from model.network.feed_forward import feed_forward
from model.network.fp8_linear import Fp8Linear, quantize_rows
from model.transformer import CoInteractTransformer3DModel, ConditioningInputs
from tests.model.bench.test_counting import CONFIG

CPU = torch.device("cpu")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def eight_bit_layer(inside: int, outside: int) -> Fp8Linear:
    layer = Fp8Linear(inside, outside)
    layer.weight, layer.weight_scale = quantize_rows(torch.randn(outside, inside) / inside**0.5)
    layer.bias = torch.nn.Parameter(torch.randn(outside))
    return layer


def eight_bit_network() -> CoInteractTransformer3DModel:
    torch.manual_seed(0)
    network = CoInteractTransformer3DModel(**CONFIG, fp8_ffn=True).eval()
    for module in network.modules():
        if isinstance(module, Fp8Linear):
            made = eight_bit_layer(module.in_features, module.out_features)
            module.load_state_dict(made.state_dict())
    return network


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


@pytest.mark.slow
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 16), (3, 5, 48), (2, 7, 96)])
def test_the_kernel_scales_rows_as_its_reference_does(shape, dtype, gelu) -> None:
    pytest.importorskip("triton", reason="the GPU kernels are written in Triton")
    from model.kernels.triton.eight_bits import launch_rows_to_eight_bits

    torch.manual_seed(0)
    states = (torch.randn(shape) * 3).to(dtype)
    bits, scale = rows_to_eight_bits_reference(states, gelu)
    found_bits, found_scale = (x.cpu() for x in launch_rows_to_eight_bits(states.to(DEVICE), gelu))
    assert found_bits.shape == bits.shape
    assert found_scale.shape == scale.shape
    torch.testing.assert_close(found_scale, scale, rtol=1e-5, atol=0)
    expected, found = bits.float(), found_bits.float()
    if DEVICE == "cpu":
        # Triton's interpreter forgets to carry: what rounds up to a power of two becomes half of it.
        found = torch.where((expected.abs().log2() % 1 == 0) & (found * 2 == expected), expected, found)
    # Values halfway between two numbers, an eighth apart, may fall to either.
    assert ((found - expected).abs() <= (expected.abs() / 8).clamp_min(2.0**-9)).all()
    assert (found != expected).float().mean() < 0.02


def test_a_row_keeps_four_bits_whatever_the_others_are() -> None:
    torch.manual_seed(0)
    states = torch.randn(4, 64) * torch.tensor([1e-6, 1.0, 1e4, 0.0])[:, None]
    bits, scale = rows_to_eight_bits_reference(states, gelu=False)
    back = bits.float() * scale
    assert bits.float().abs().amax(dim=1).tolist() == [LARGEST, LARGEST, LARGEST, 0]
    floor = scale * 2.0**-10  # half of the smallest number
    assert ((back - states).abs() <= states.abs() / 16 + floor).all()
    alone = rows_to_eight_bits_reference(states[1:2], gelu=False)[0]
    assert torch.equal(alone.view(torch.uint8), bits[1:2].view(torch.uint8))


@pytest.mark.parametrize("shape", [(16, 16), (3, 5, 48), (1, 33, 96)])
def test_torchs_product_is_that_of_the_reference(shape) -> None:
    """The call that runs on GPUs; torch has it for CPUs too."""
    torch.manual_seed(0)
    layer = eight_bit_layer(shape[-1], 32)
    bits, scale = rows_to_eight_bits(torch.randn(shape), gelu=False)
    sides = bits, scale, layer.weight.view(EIGHT_BITS), layer.weight_scale, layer.bias.detach()
    expected = eight_bit_product(*sides, torch.float32)
    found = eight_bit_product_cuda(*(side.to(DEVICE) for side in sides), torch.bfloat16).cpu()
    assert found.shape == (*shape[:-1], 32)
    torch.testing.assert_close(found.float(), expected, rtol=2.0**-7, atol=2.0**-7)


@torch.no_grad()
def test_a_feed_forward_in_eight_bits_is_close_to_the_expanded_one_and_not_the_same() -> None:
    torch.manual_seed(0)
    module = FeedForward(64, inner_dim=192, activation_fn="gelu-approximate")
    module.net[0].proj, module.net[2] = eight_bit_layer(64, 192), eight_bit_layer(192, 64)
    states = torch.randn(2, 50, 64)
    expanded = feed_forward(module, states)
    for layer in (module.net[0].proj, module.net[2]):
        layer.computes_in_fp8 = True
    computed = feed_forward(module, states)
    assert 0.005 < relative(computed, expanded) < 0.05
    # Called as modules, one after the other, the layers do the same.
    torch.testing.assert_close(module(states), computed, rtol=0, atol=0.2)
    assert relative(module(states), computed) < 0.02


@torch.no_grad()
def test_a_network_computes_in_eight_bits_where_the_device_can(monkeypatch: pytest.MonkeyPatch) -> None:
    network = eight_bit_network()
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    conditioning = network.prepare_conditioning(
        ConditioningInputs(
            person_latents=normal(1, 16, 1, 8, 8),
            encoder_hidden_states=normal(1, 5, network.config.text_dim),
            audio_embeds=normal(1, 25, network.config.audio_dim, 8),
        ),
        num_latent_frames=2,
    )
    target = normal(1, 16, 2, 8, 8)

    def predict() -> torch.Tensor:
        found: torch.Tensor = network(target, 500.0, conditioning).sample
        return found

    expanded = predict()
    assert choose_fp8(network, True, CPU) is False
    assert torch.equal(predict(), expanded)
    monkeypatch.setattr(model.fp8_choice, "why_not_fp8", lambda device: None)
    assert choose_fp8(network, True, CPU) is True
    computed = predict()
    assert 0 < relative(computed, expanded) < 0.05
    assert choose_fp8(network, False, CPU) is False
    assert torch.equal(predict(), expanded)


def test_a_network_without_eight_bit_weights_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.fp8_choice, "why_not_fp8", lambda device: None)
    assert choose_fp8(CoInteractTransformer3DModel(**CONFIG), True, CPU) is False


@pytest.mark.parametrize(("capability", "obstacle"), [((8, 0), "below 8.9"), ((8, 9), None), ((9, 0), None)])
def test_a_gpu_is_asked_for_its_capability_and_then_tried(
    capability: tuple[int, int], obstacle: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(model.fp8_choice, "why_not_tried", lambda device: None)
    found = why_not_fp8(torch.device("cuda"))
    assert found is None if obstacle is None else obstacle in str(found)


def test_a_small_product_is_tried_for_real(monkeypatch: pytest.MonkeyPatch) -> None:
    assert why_not_tried(CPU) is None

    def refuse(*arguments: object) -> torch.Tensor:
        raise RuntimeError("rowwise scaling is not built\nfor this card")

    monkeypatch.setattr(model.fp8_choice, "eight_bit_product_cuda", refuse)
    assert why_not_tried(CPU) == "rowwise scaling is not built"
    monkeypatch.setattr(
        model.fp8_choice, "eight_bit_product_cuda", lambda *sides: torch.full((16, 16), math.nan)
    )
    assert "instead of 16" in str(why_not_tried(CPU))


def test_a_layer_of_odd_width_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.fp8_choice, "why_not_fp8", lambda device: None)
    network = eight_bit_network()
    network.blocks[0].ffn.net[2] = eight_bit_layer(network.config.ffn_dim, 24)
    assert choose_fp8(network, True, CPU) is False
    assert not any(m.computes_in_fp8 for m in network.modules() if isinstance(m, Fp8Linear))
