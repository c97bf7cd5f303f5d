"""The co-generation objective: official noise levels, and who may influence whom."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model.kernels.router import FACE, HAND
from model.training_schedule import training_schedule
from model.transformer import ConditioningInputs
from tests.training.networks import noises, small_batch, small_transformer
from training.branches import is_hoi, without_hoi_branch
from training.objective import CoGeneration, LossWeights, routing_loss, time_window

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parents[1] / "data" / "scheduler_cases.safetensors"
LEVELS = torch.tensor([400, 850])


def test_noise_levels_and_weights_are_the_official_ones() -> None:
    golden = load_file(GOLDEN)
    schedule = training_schedule(5.0)
    torch.testing.assert_close(schedule.timesteps, golden["train.timesteps.shift5"], rtol=1e-6, atol=1e-3)
    torch.testing.assert_close(schedule.weights, golden["train.weights.shift5"], rtol=1e-5, atol=1e-5)


def test_in_stage_two_the_pruned_network_predicts_the_same_bits() -> None:
    transformer = small_transformer().eval()
    batch = small_batch(frames=20, batch=1)
    noise, hoi_noise = noises(batch)
    shared = ConditioningInputs(
        person_latents=batch.person,
        encoder_hidden_states=batch.prompt_embeds,
        audio_embeds=batch.audio,
        product_latents=batch.product,
        motion_latents=batch.motion,
    )
    with_hoi = replace(shared, hoi_encoder_hidden_states=batch.hoi_prompt_embeds)
    with torch.no_grad():
        both = transformer(noise, 500.0, with_hoi, hoi_latents=hoi_noise, hoi_visibility="asymmetric")
        pruned = without_hoi_branch(transformer)(noise, 500.0, shared)
        coupled = transformer(noise, 500.0, with_hoi, hoi_latents=hoi_noise, hoi_visibility="mutual")
    assert torch.equal(both.sample, pruned.sample)
    assert not torch.equal(both.sample, coupled.sample)


def test_in_stage_two_the_hoi_loss_trains_shared_weights_through_its_view_of_the_video() -> None:
    model = CoGeneration(small_transformer(), training_schedule(5.0), visibility="asymmetric")
    batch = small_batch()
    target = batch.target.clone().requires_grad_()
    losses = model(replace(batch, target=target), LEVELS, *noises(batch))
    assert losses.hoi is not None
    losses.hoi.backward()
    first = model.transformer.blocks[0]
    assert float(first.attn1.to_k.weight.grad.abs().max()) > 0
    # The patch embedding of the video reaches the HOI prediction only through HOI → RGB attention.
    assert float(model.transformer.patch_embedding.weight.grad.abs().max()) > 0
    assert target.grad is not None
    assert float(target.grad.abs().max()) > 0


def test_in_stage_two_the_rgb_loss_leaves_the_hoi_stream_alone() -> None:
    model = CoGeneration(small_transformer(), training_schedule(5.0), visibility="asymmetric")
    batch = small_batch()
    model(batch, LEVELS, *noises(batch)).rgb.backward()
    for name, weight in model.transformer.named_parameters():
        if is_hoi(name):
            assert weight.grad is None or not weight.grad.any(), name


def test_in_stage_one_the_rgb_loss_reaches_the_hoi_stream() -> None:
    model = CoGeneration(small_transformer(), training_schedule(5.0), visibility="mutual")
    batch = small_batch()
    model(batch, LEVELS, *noises(batch)).rgb.backward()
    assert float(model.transformer.hoi_patch_embedding.weight.grad.abs().max()) > 0


def test_router_supervision_does_not_steer_the_features_it_reads() -> None:
    model = CoGeneration(small_transformer(), training_schedule(5.0))
    batch = small_batch()
    losses = model(batch, LEVELS, *noises(batch))
    assert losses.routing is not None
    losses.routing.backward()
    moved = {
        name
        for name, weight in model.transformer.named_parameters()
        if weight.grad is not None and weight.grad.any()
    }
    assert moved
    assert all(".moe.router." in name for name in moved)


def test_total_is_the_weighted_sum() -> None:
    batch = small_batch()
    model = CoGeneration(small_transformer(), training_schedule(5.0), LossWeights(hoi=0.5, routing=0.05))
    losses = model(batch, LEVELS, *noises(batch))
    assert losses.hoi is not None
    assert losses.routing is not None
    assert losses.total.item() == pytest.approx(
        losses.rgb.item() + 0.5 * losses.hoi.item() + 0.05 * losses.routing.item()
    )


def test_a_perfect_prediction_of_noise_minus_clean_costs_nothing() -> None:
    batch = small_batch(hoi=None, labels=None)
    noise, _ = noises(batch)
    model = CoGeneration(small_transformer(), training_schedule(5.0))

    class Oracle(torch.nn.Module):
        prepare_conditioning = model.transformer.prepare_conditioning

        def forward(self, hidden_states: torch.Tensor, *_: object, **__: object) -> object:
            output = model.transformer(hidden_states, *_, **__)
            return replace(output, sample=noise - batch.target)

    perfect = CoGeneration(Oracle(), training_schedule(5.0))  # type: ignore[arg-type]
    assert perfect(batch, LEVELS, noise).rgb.item() == 0
    assert model(batch, LEVELS, noise).rgb.item() > 0.1


def test_hands_and_faces_weigh_ten_times_base_tokens() -> None:
    logits = torch.zeros(1, 4, 3)
    base = routing_loss((logits,), torch.tensor([[0, 0, 0, 0]]), LossWeights())[0]
    one_hand = routing_loss((logits,), torch.tensor([[0, HAND, 0, 0]]), LossWeights())[0]
    one_face = routing_loss((logits,), torch.tensor([[FACE, 0, 0, 0]]), LossWeights())[0]
    assert one_hand.item() == pytest.approx(base.item() * 13 / 4)
    assert one_face.item() == pytest.approx(one_hand.item())


def test_routing_accuracy_counts_each_kind_of_token_alike() -> None:
    always_base = torch.tensor([[[5.0, 0, 0]] * 10])
    labels = torch.tensor([[0] * 8 + [HAND, FACE]])
    assert routing_loss((always_base,), labels, LossWeights())[1].item() == pytest.approx(1 / 3)


def test_a_window_of_time_keeps_its_place() -> None:
    transformer = small_transformer().eval()
    batch = small_batch(batch=1, frames=20)
    conditioning = CoGeneration(transformer, training_schedule(5.0))._conditioning(batch)
    window = time_window(conditioning, 7, 4)
    per_frame = conditioning.layout.grid[1] * conditioning.layout.grid[2]
    assert window.layout.grid == (4, *conditioning.layout.grid[1:])
    assert len(window.rotary_emb) == window.layout.video + window.layout.hoi
    torch.testing.assert_close(
        window.rotary_emb[: 4 * per_frame], conditioning.rotary_emb[7 * per_frame : 11 * per_frame]
    )
    torch.testing.assert_close(window.audio.local, conditioning.audio.local[:, 7:11])
    with torch.no_grad():
        output = transformer(
            batch.target[:, :, 7:11],
            500.0,
            window,
            hoi_latents=batch.hoi[:, :, 7:11],  # type: ignore[index]
        )
    assert output.sample.shape == (1, 16, 4, 8, 8)


def test_faces_hands_and_objects_can_weigh_more_without_changing_the_scale() -> None:
    batch = small_batch(hoi=None)
    assert batch.labels is not None
    labels = torch.zeros_like(batch.labels)
    labels[:, :, 0, 0] = FACE
    batch = replace(batch, labels=labels)
    noise, _ = noises(batch)
    transformer = small_transformer()
    for weight in transformer.proj_out.parameters():  # predicts 0, so that errors are what we make them
        torch.nn.init.zeros_(weight)

    def rgb(target: torch.Tensor, details: float) -> float:
        model = CoGeneration(transformer, training_schedule(5.0), LossWeights(details=details))
        return float(model(replace(batch, target=target), LEVELS, noise, None).rgb.detach())

    even = noise - 1.0  # the same error everywhere
    assert rgb(even, 4.0) == pytest.approx(rgb(even, 1.0))
    in_face = noise.clone()
    in_face[..., :2, :2] -= 1.0  # a token covers 2×2 latents
    tokens = labels[0, 0].numel()
    expected = 4.0 / ((tokens - 1 + 4.0) / tokens)
    assert rgb(in_face, 4.0) == pytest.approx(expected * rgb(in_face, 1.0), rel=1e-4)

    batch = replace(batch, labels=torch.zeros_like(labels), objects=(labels == FACE).byte())
    assert rgb(in_face, 4.0) == pytest.approx(expected * rgb(in_face, 1.0), rel=1e-4)
