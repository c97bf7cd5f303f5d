"""Which kernel computes attention: measured on the device, taken, and written down."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName
from torch.nn.attention import SDPBackend

from contract.attention import AttentionBackend
from model.attention_choice import (
    CANDIDATES,
    AttentionShape,
    Measured,
    choose_attention,
    fastest,
    measure,
)
from model.network.attention import CoInteractAttention
from model.network.attention_backends import dispatch, use_backend
from model.transformer import CoInteractTransformer3DModel, ConditioningInputs

CPU, GPU = torch.device("cpu"), torch.device("cuda")
FLOAT = torch.float32


@pytest.fixture(scope="module")
def network() -> CoInteractTransformer3DModel:
    torch.manual_seed(0)
    return CoInteractTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        ffn_dim=32,
        text_dim=8,
        freq_dim=16,
        audio_dim=8,
        num_layers=2,
        audio_inject_layers=(0,),
        expert_hidden_dim=8,
    ).eval()


def predict(network: CoInteractTransformer3DModel) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw)

    with torch.no_grad():
        sample: torch.Tensor = network(
            normal(1, 16, 2, 8, 8),
            500.0,
            ConditioningInputs(
                person_latents=normal(1, 16, 1, 8, 8),
                encoder_hidden_states=normal(1, 5, 8),
                audio_embeds=normal(1, 25, 8, 8),
            ),
        ).sample
    return sample


def rates(**seconds: float | None) -> tuple[Measured, ...]:
    return tuple(Measured(AttentionBackend(name.replace("_", "-")), value) for name, value in seconds.items())


def test_everything_that_this_machine_has_is_measured_and_the_rest_says_why_not() -> None:
    found = {result.backend: result for result in measure(AttentionShape(64, 2, 16), CPU, FLOAT)}
    assert set(found) == set(CANDIDATES)
    for backend in (AttentionBackend.TORCH, AttentionBackend.TORCH_FLASH, AttentionBackend.TORCH_MATH):
        assert (found[backend].seconds or 0) > 0
    for backend in (AttentionBackend.CUDNN, AttentionBackend.FLASH_3):
        assert found[backend].seconds is None
        assert len(found[backend].why_not) > 20


def test_seconds_are_those_of_all_heads_and_tokens_though_few_are_measured() -> None:
    few, many = AttentionShape(256, 4, 16), AttentionShape(256, 4000, 16)
    seconds = [measure(shape, CPU, FLOAT)[0].seconds or 0 for shape in (few, many)]
    assert seconds[1] > 100 * seconds[0]


def test_scores_that_fill_the_memory_are_not_even_tried(monkeypatch) -> None:
    monkeypatch.setattr("model.attention_choice.MOST_SCORES", 100)
    found = {result.backend: result for result in measure(AttentionShape(64, 2, 16), CPU, FLOAT)}
    assert "memory" in found[AttentionBackend.TORCH_MATH].why_not


def test_a_gpu_takes_the_fastest_and_torchs_own_among_equals() -> None:
    assert fastest(rates(torch=2.0, cudnn=1.2, torch_flash=2.0), GPU) is AttentionBackend.CUDNN
    assert fastest(rates(torch=2.0, flash_3=1.0, cudnn=0.99), GPU) is AttentionBackend.FLASH_3
    assert fastest(rates(torch=2.0, cudnn=1.98), GPU) is AttentionBackend.TORCH
    assert fastest(rates(torch=None, cudnn=5.0), GPU) is AttentionBackend.CUDNN
    assert fastest(rates(torch=None, cudnn=None), GPU) is AttentionBackend.TORCH


def test_a_cpu_keeps_torchs_own_so_that_another_process_goes_on_with_the_same_bits() -> None:
    assert fastest(rates(torch=2.0, torch_math=0.1), CPU) is AttentionBackend.TORCH


@pytest.mark.parametrize("backend", [AttentionBackend.TORCH_MATH, AttentionBackend.TORCH_FLASH])
def test_a_wanted_backend_is_used_by_every_attention_and_computes_the_same(network, backend, caplog) -> None:
    use_backend(network, AttentionBackend.TORCH)
    expected = predict(network)
    with caplog.at_level("INFO"):
        choice = choose_attention(network, backend, 128, CPU, FLOAT)
    kernels = [
        module.processor.torch_kernels
        for module in network.modules()
        if isinstance(module, CoInteractAttention)
    ]
    assert len(kernels) == 5
    assert {order[0] for order in kernels} == {dispatch(backend).torch_kernels[0]}
    torch.testing.assert_close(predict(network), expected, atol=2e-5, rtol=0)
    report = choice.report()
    assert report.backend is backend
    assert report.tokens == 128
    assert set(report.teraflops) >= {AttentionBackend.TORCH, AttentionBackend.TORCH_MATH}
    assert f"attention of 128 tokens on {backend}" in caplog.text


def test_a_kernel_that_cannot_compute_something_has_others_behind_it(network) -> None:
    use_backend(network, AttentionBackend.CUDNN)  # not on a CPU
    assert torch.isfinite(predict(network)).all()
    assert dispatch(AttentionBackend.CUDNN, strict=True).torch_kernels == (SDPBackend.CUDNN_ATTENTION,)
    use_backend(network, AttentionBackend.TORCH)


def test_packages_are_reached_through_diffusers_and_their_absence_is_said() -> None:
    assert dispatch(AttentionBackend.TORCH).name is AttentionBackendName.NATIVE
    for backend, package in ((AttentionBackend.FLASH_3, "FA3"), (AttentionBackend.FLASH_3_HUB, "kernels")):
        with pytest.raises(RuntimeError, match=package):
            dispatch(backend)
