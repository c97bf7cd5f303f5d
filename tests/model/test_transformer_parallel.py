"""One network on several ranks: two, three and four processes on the CPU, at sizes that nothing divides."""

from pathlib import Path
from typing import Any

import pytest
import torch

from model.checkpoints.official_names import dit_config
from model.parallel.arrangement import degrees, share
from model.parallel.collectives import Purpose
from model.parallel.conditioning import share_tokens
from model.parallel.ranks import Ranks
from model.transformer import CoInteractTransformer3DModel, ConditioningInputs
from tests.model.golden import TINY_DIT
from tests.model.ranks import on_ranks

pytestmark = pytest.mark.slow

FRAMES = 3
WIDTH = TINY_DIT["dim"]
HEADS = TINY_DIT["num_heads"]
BLOCKS = 2


def tiny_transformer() -> CoInteractTransformer3DModel:
    torch.manual_seed(0)
    settings = {**dit_config(TINY_DIT, hoi_branch=False), "num_layers": BLOCKS, "audio_inject_layers": (0, 1)}
    return CoInteractTransformer3DModel(**settings).eval()


def clip(
    height: int, width: int, *, later: bool, product: bool, pose: bool, batch: int = 1
) -> dict[str, Any]:
    """Inputs of a clip with latents of height × width."""
    generator = torch.Generator().manual_seed(height)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(batch, *shape, generator=generator)

    return {
        "person_latents": normal(16, 1, height, width),
        "product_latents": normal(16, 1, height, width) if product else None,
        "motion_latents": normal(16, 19, height, width) if later else None,
        "pose_latents": normal(16, FRAMES, height, width) if pose else None,
        "encoder_hidden_states": normal(5, 64),
        "audio_embeds": normal(25, 32, 12),
    }


CLIPS = {
    "480x832 at a quarter": clip(26, 14, later=True, product=True, pose=False),
    "1280x720 at a fifth": clip(18, 32, later=True, product=True, pose=True),
    "a first clip without product": clip(26, 14, later=False, product=False, pose=False),
    "the smallest": clip(8, 8, later=True, product=False, pose=False),
    "two videos at once": clip(10, 8, later=True, product=True, pose=True, batch=2),
}


def forwards(ranks: Ranks) -> dict[str, dict[str, Any]]:
    """Every clip on this process alone and shared with the others."""
    transformer = tiny_transformer()
    found = {}
    for name, inputs in CLIPS.items():
        person = inputs["person_latents"]
        target = torch.randn(person.shape[0], 16, FRAMES, *person.shape[-2:], generator=torch.manual_seed(1))
        for keep in (False, True):
            with torch.no_grad():
                whole = transformer.prepare_conditioning(
                    ConditioningInputs(**inputs), num_latent_frames=FRAMES, keep_key_values=keep
                )
                alone = transformer(target, 500, whole)
                part = share_tokens(whole, ranks.world)
                ranks.traffic.received.clear()
                shared = transformer(target, 500, part)
            found[f"{name}, {keep}"] = {
                "difference": (shared.sample - alone.sample).abs().max().item(),
                "held": (part.layout.video, part.layout.target, whole.layout.video, whole.layout.target),
                "received": dict(ranks.traffic.received),
            }
    return found


@pytest.mark.parametrize("count", [2, 3, 4])
def test_ranks_predict_what_one_process_does_and_exchange_what_the_formula_says(
    count: int, tmp_path: Path
) -> None:
    results = on_ranks(count, tmp_path, forwards)
    for name in results[0]:
        batch = 2 if name.startswith("two") else 1
        layouts = [result[name]["held"] for result in results]
        assert sum(layout[0] for layout in layouts) == layouts[0][2], name
        assert max(layout[1] for layout in layouts) - min(layout[1] for layout in layouts) <= FRAMES
        for rank, result in enumerate(results):
            assert result[name]["difference"] < 2e-5, name
            held, held_target, tokens, target = layouts[rank]
            heads = len(share(HEADS, count, rank))
            width = WIDTH // HEADS
            # Queries, keys and values of the others' tokens for our heads; others' heads for our tokens.
            inwards = (BLOCKS * 3 - 1) * (tokens - held) + (target - held_target)
            outwards = (BLOCKS - 1) * held + held_target
            attention = (inwards * heads + outwards * (HEADS - heads)) * width
            velocity = (count - 1) * max(layout[1] for layout in layouts) * 64
            assert result[name]["received"] == {
                Purpose.ATTENTION: batch * attention * 4,
                Purpose.VELOCITY: batch * velocity * 4,
            }, name


def test_shares_are_in_order_without_gaps_and_differ_by_one_at_most() -> None:
    for count in range(40):
        for ranks in range(1, 9):
            shares = [share(count, ranks, rank) for rank in range(ranks)]
            assert [place for held in shares for place in held] == list(range(count))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_the_two_passes_of_guidance_come_first_and_then_the_tokens() -> None:
    assert [tuple(degrees(ranks, guided=True)) for ranks in range(1, 9)] == [
        (1, 1),
        (2, 1),
        (1, 3),
        (2, 2),
        (1, 5),
        (2, 3),
        (1, 7),
        (2, 4),
    ]
    assert [tuple(degrees(ranks, guided=False)) for ranks in (1, 2, 8)] == [(1, 1), (1, 2), (1, 8)]
    with pytest.raises(ValueError, match="at least one device"):
        degrees(0, guided=True)


def arranged(ranks: Ranks) -> list[tuple[Any, ...]]:
    found = []
    for guided in (True, False):
        arrangement = ranks.arrangement(guided)
        members = [
            None if group is None else group.gather(torch.tensor([ranks.rank]), Purpose.INPUTS).tolist()
            for group in (arrangement.sequence, arrangement.partners)
        ]
        found.append((arrangement.conditional, arrangement.unconditional, *members))
    return found


def test_four_ranks_are_two_pairs_with_guidance_and_one_group_without(tmp_path: Path) -> None:
    zero, _, _, three = on_ranks(4, tmp_path, arranged)
    assert zero == [(True, False, [[0], [1]], [[0], [2]]), (True, False, [[0], [1], [2], [3]], None)]
    assert three == [(False, True, [[2], [3]], [[1], [3]]), (True, False, [[0], [1], [2], [3]], None)]


def test_more_ranks_than_heads_and_hoi_tokens_are_refused(tmp_path: Path) -> None:
    assert on_ranks(2, tmp_path, refusals) == [["the HOI stream", "cannot share 1 attention heads"]] * 2


def refusals(ranks: Ranks) -> list[str]:
    found = []
    inputs = clip(10, 6, later=False, product=False, pose=False)
    settings = {**dit_config(TINY_DIT, hoi_branch=True), "num_layers": 1, "audio_inject_layers": ()}
    for change, words in (
        ({}, "the HOI stream"),
        ({"num_attention_heads": 1}, "cannot share 1 attention heads"),
    ):
        transformer = CoInteractTransformer3DModel(**(settings | change))
        hoi = {} if change else {"hoi_encoder_hidden_states": torch.zeros(1, 5, 64)}
        try:
            whole = transformer.prepare_conditioning(
                ConditioningInputs(**inputs, **hoi), num_latent_frames=FRAMES
            )
            transformer(torch.zeros(1, 16, FRAMES, 10, 6), 500, share_tokens(whole, ranks.world))
        except ValueError as error:
            found.append(words if words in str(error) else str(error))
    return found
