"""The Human-Aware experts on their own."""

import torch

from model.kernels.router import BASE, FACE, HAND, weighted_experts
from model.network.moe import HumanAwareMoE, face_weight


def make(dim: int = 16) -> HumanAwareMoE:
    torch.manual_seed(0)
    return HumanAwareMoE(dim, expert_hidden_dim=8)


def certain(expert: int) -> torch.Tensor:
    """Logits of a router without doubt, (1, 1, 3)."""
    logits = torch.full((1, 1, 3), -1e4)
    logits[..., expert] = 1e4
    return logits


def test_a_certain_router_adds_exactly_one_expert_and_nothing_for_the_base() -> None:
    moe = make()
    states = torch.randn(1, 5, 16)
    with torch.no_grad():
        assert torch.equal(weighted_experts(certain(BASE), *moe(states)), torch.zeros(1, 5, 16))
        torch.testing.assert_close(weighted_experts(certain(HAND), *moe(states)), moe.hand_expert(states))
        torch.testing.assert_close(weighted_experts(certain(FACE), *moe(states)), moe.face_expert(states))


def test_experts_are_weighted_by_the_softmax_over_all_three() -> None:
    moe = make()
    states = torch.randn(2, 5, 16)
    with torch.no_grad():
        logits = moe.route(states)
        weights = logits.softmax(-1)
        expected = weights[..., HAND, None] * moe.hand_expert(states)
        expected += weights[..., FACE, None] * moe.face_expert(states)
        torch.testing.assert_close(weighted_experts(logits, *moe(states)), expected)
        torch.testing.assert_close(face_weight(logits), weights[..., FACE, None])


def test_routing_sends_no_gradient_into_the_features() -> None:
    moe = make()
    states = torch.randn(1, 5, 16, requires_grad=True)
    logits = moe.route(states)
    logits.square().sum().backward()
    assert states.grad is None
    assert not face_weight(logits).requires_grad
    # The experts themselves do.
    weighted_experts(moe.route(states), *moe(states)).sum().backward()
    assert states.grad is not None
