"""Activations in parts, for GPUs with little memory: the same velocities and frames as in one piece."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from model.checkpoints.official_names import dit_config
from model.checkpoints.tiny import tiny_pipeline
from model.parallel.decoding import BANDS_IN_TURN
from model.transformer import CoInteractTransformer3DModel, ConditioningInputs
from model.vae import decode_latents
from tests.model.golden import TINY_DIT
from tests.model.test_pipeline_parallel import render, settings
from tests.model.test_transformer_parallel import CLIPS, FRAMES, tiny_transformer

ROUNDING = 2e-6
"""Relative: a matrix product of other rows may add in another order."""


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.parametrize("part_tokens", [1000, 61])
@pytest.mark.parametrize("switches", [{}, {"audio_face_mask": True, "return_router_logits": True}])
@torch.no_grad()
def test_a_forward_in_parts_predicts_what_a_whole_one_does(
    name: str, part_tokens: int, switches: dict[str, Any]
) -> None:
    transformer, inputs = tiny_transformer(), CLIPS[name]
    person = inputs["person_latents"]
    batch = person.shape[0]
    target = torch.randn(batch, 16, FRAMES, *person.shape[-2:], generator=torch.manual_seed(1))
    conditioning = transformer.prepare_conditioning(ConditioningInputs(**inputs), num_latent_frames=FRAMES)
    # With experts, without, and in a batch some samples of each.
    timesteps = [torch.tensor([500.0]), torch.tensor([950.0]), torch.tensor([500.0, 950.0][:batch])]
    for timestep in timesteps:
        transformer.part_tokens = None
        whole = transformer(target, timestep, conditioning, **switches)
        transformer.part_tokens = part_tokens
        parts = transformer(target, timestep, conditioning, **switches)
        assert apart(parts.sample, whole.sample) < ROUNDING
        for found, expected in zip(parts.router_logits or (), whole.router_logits or (), strict=True):
            assert found.shape == expected.shape
            assert apart(found, expected) < 10 * ROUNDING


@torch.no_grad()
def test_the_hoi_stream_is_the_same_beside_a_video_in_parts() -> None:
    torch.manual_seed(0)
    made = {**dit_config(TINY_DIT, hoi_branch=True), "num_layers": 2, "audio_inject_layers": (0, 1)}
    transformer = CoInteractTransformer3DModel(**made).eval()
    inputs = CLIPS["the smallest"]
    given = ConditioningInputs(**inputs, hoi_encoder_hidden_states=torch.randn(1, 5, 64))
    conditioning = transformer.prepare_conditioning(given, num_latent_frames=FRAMES)
    target, hoi = torch.randn(2, 1, 16, FRAMES, 8, 8)
    whole = transformer(target, 500.0, conditioning, hoi_latents=hoi, hoi_visibility="mutual")
    transformer.part_tokens = 5
    parts = transformer(target, 500.0, conditioning, hoi_latents=hoi, hoi_visibility="mutual")
    assert apart(parts.sample, whole.sample) < ROUNDING
    assert apart(parts.hoi_sample, whole.hoi_sample) < ROUNDING


@torch.no_grad()
def test_parts_are_no_larger_than_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from model.network import block

    seen: list[int] = []
    plain = block.feed_forward

    def watched(module: Any, states: torch.Tensor) -> torch.Tensor:
        seen.append(states.shape[1])
        return plain(module, states)

    monkeypatch.setattr(block, "feed_forward", watched)
    transformer, inputs = tiny_transformer(), CLIPS["480x832 at a quarter"]
    conditioning = transformer.prepare_conditioning(ConditioningInputs(**inputs), num_latent_frames=FRAMES)
    target = torch.randn(1, 16, FRAMES, *inputs["person_latents"].shape[-2:])
    transformer.part_tokens = 100
    transformer(target, 500.0, conditioning)
    layout = conditioning.layout
    assert max(seen) <= 100
    assert sum(seen) == layout.video + layout.target, "two layers, of which the last has the target only"


@pytest.mark.slow
@pytest.mark.parametrize("size", [(80, 144), (144, 80)])
def test_a_clip_in_parts_is_within_a_level_of_the_whole_one(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    width, height = size
    params = settings(width=width, height=height)
    pipeline = tiny_pipeline()
    whole = render(pipeline, None, params).frames
    pipeline.transformer.part_tokens = 100
    decoded: list[tuple[int, ...]] = []

    def watched(*arguments: Any, **named: Any) -> torch.Tensor:
        pixels = decode_latents(*arguments, **named)
        decoded.append(tuple(pixels.shape[-2:]))
        return pixels

    monkeypatch.setattr("model.parallel.decoding.decode_latents", watched)
    parts = render(pipeline, None, params).frames
    half = (height, width // 2) if width > height else (height // 2, width)
    assert decoded == [half] * BANDS_IN_TURN
    assert parts.shape == whole.shape
    assert np.abs(parts.astype(int) - whole).max() <= 1
