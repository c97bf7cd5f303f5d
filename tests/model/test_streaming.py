"""Blocks that stream through the device: the right weights at the right time, without waiting."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from model.memory.lanes import HostLanes
from model.memory.streaming import PLACES, BlockStream
from tests.model.simulated_lanes import SimulatedLanes

SECONDS_PER_BYTE = 1e-6


class Layer(nn.Module):
    """A block with parameters and an 8-bit buffer, which computes for some seconds."""

    def __init__(self, width: int, hidden: int, lanes: SimulatedLanes | None, seconds: float) -> None:
        super().__init__()
        self.linear = nn.Linear(width, hidden)
        self.last = nn.Linear(hidden, width)
        self.register_buffer("bits", torch.randint(0, 200, (width,), dtype=torch.uint8))
        self.lanes, self.seconds = lanes, seconds

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        if self.lanes is not None:
            self.lanes.spend(self.seconds, self.linear.weight)
        return self.last(torch.tanh(self.linear(states))) + self.bits


def network(
    layers: int, lanes: SimulatedLanes | None, seconds: float = 1.0, growth: int = 3
) -> nn.Sequential:
    """Blocks over 64 channels, each a little larger than the one before."""
    torch.manual_seed(0)
    return nn.Sequential(*(Layer(64, 64 + growth * layer, lanes, seconds) for layer in range(layers)))


def lanes_for(network: nn.Sequential, copy_seconds: float) -> SimulatedLanes:
    block = sum(tensor.nbytes for tensor in network[0].state_dict().values())
    return SimulatedLanes(seconds_per_byte=copy_seconds / block)


@pytest.mark.parametrize("layers", [1, 2, 3, 8])
def test_streamed_blocks_compute_what_resident_ones_do(layers: int) -> None:
    states = torch.randn(4, 64)
    plain = network(layers, None)
    expected = [plain(states), plain(states + 1)]
    lanes = SimulatedLanes(SECONDS_PER_BYTE)
    streamed = network(layers, lanes)
    BlockStream(list(streamed), torch.device("cpu"), lanes)
    assert all(torch.equal(streamed(states + i), expected[i]) for i in range(2))


def test_forgetting_to_wait_for_a_copy_would_be_seen() -> None:
    class Hasty(SimulatedLanes):
        def compute_after(self, mark: float) -> None:
            pass

    states, lanes = torch.randn(4, 64), Hasty(SECONDS_PER_BYTE)
    streamed = network(3, lanes)
    BlockStream(list(streamed), torch.device("cpu"), lanes)
    assert not torch.equal(streamed(states), network(3, None)(states))


def test_copies_hide_behind_computing() -> None:
    lanes = SimulatedLanes(0.0)
    streamed = network(8, lanes, seconds=1.0, growth=0)
    lanes.seconds_per_byte = lanes_for(streamed, copy_seconds=0.9).seconds_per_byte
    BlockStream(list(streamed), torch.device("cpu"), lanes)
    states = torch.randn(4, 64)
    streamed(states)
    first = lanes.waited
    assert first == pytest.approx(0.9, rel=0.1)  # only the very first block has nothing to hide behind
    for _ in range(3):
        streamed(states)
    assert lanes.waited == first
    assert lanes.compute_clock == pytest.approx(4 * 8 + first)


def test_when_copying_takes_longer_the_copies_set_the_pace() -> None:
    lanes = SimulatedLanes(0.0)
    streamed = network(8, lanes, seconds=0.5, growth=0)
    lanes.seconds_per_byte = lanes_for(streamed, copy_seconds=1.0).seconds_per_byte
    BlockStream(list(streamed), torch.device("cpu"), lanes)
    for _ in range(3):
        streamed(torch.randn(4, 64))
    copied = sum(copy.end - copy.start for copy in lanes.copies)
    # The queue of copies is never idle but for the places that are still being computed with.
    assert lanes.copy_clock <= copied + 3 * 8 * 0.5
    assert lanes.compute_clock < 3 * 8 * (1.0 + 0.5)


def test_no_block_is_overwritten_while_it_computes() -> None:
    lanes = SimulatedLanes(1e-9)  # copies as fast as can be, so a place that is not free would be hit
    streamed = network(5, lanes)
    BlockStream(list(streamed), torch.device("cpu"), lanes)
    for _ in range(3):
        streamed(torch.randn(4, 64))
    assert lanes.overwritten_reads() == []

    class Rash(SimulatedLanes):
        def copy_after(self, mark: float) -> None:
            pass

    lanes = Rash(1e-9)
    streamed = network(5, lanes)
    BlockStream(list(streamed), torch.device("cpu"), lanes)
    streamed(torch.randn(4, 64))
    assert lanes.overwritten_reads() != []


def test_parked_blocks_hold_no_device_memory_and_come_back() -> None:
    lanes = SimulatedLanes(SECONDS_PER_BYTE)
    streamed = network(4, lanes)
    stream = BlockStream(list(streamed), torch.device("cpu"), lanes)
    states = torch.randn(4, 64)
    expected = streamed(states)
    on_device = lanes.copy_clock
    stream.park()
    assert stream._places == []
    # The copy of the first block that was under way has ended before anybody gets its memory.
    assert lanes.compute_clock >= on_device
    assert torch.equal(streamed(states), expected)


def test_main_memory_is_what_the_weights_take_and_no_more() -> None:
    lanes = SimulatedLanes(SECONDS_PER_BYTE)
    streamed = network(6, lanes)
    tensors = list(streamed.state_dict().values())
    stream = BlockStream(list(streamed), torch.device("cpu"), lanes)
    weights = sum(tensor.nbytes for tensor in tensors)
    assert weights <= stream.host_bytes == lanes.locked <= weights + 256 * len(tensors)
    assert stream.place_bytes == max(slab.memory.nbytes for slab in stream._slabs)
    # What the blocks held before is gone: each block's weights lie in its slab.
    storages = {tensor.untyped_storage().data_ptr() for tensor in streamed.state_dict().values()}
    assert len(storages) == 6


def test_a_pass_that_broke_off_leaves_nothing_wrong_behind() -> None:
    lanes = SimulatedLanes(SECONDS_PER_BYTE)
    streamed = network(5, lanes)
    BlockStream(list(streamed), torch.device("cpu"), lanes)
    states = torch.randn(4, 64)
    expected = streamed(states)
    with pytest.raises(RuntimeError):
        streamed[2].linear(streamed[2](streamed[1](streamed[0](states)))[:, :3])
    with pytest.raises(RuntimeError):
        streamed[3](states[:, :3])  # inside a block
    assert torch.equal(streamed(states), expected)
    assert torch.equal(streamed[4](states), network(5, None)[4](states))  # out of order


def test_without_a_device_blocks_are_there_at_once() -> None:
    streamed = network(3, None)
    stream = BlockStream(list(streamed), torch.device("cpu"), HostLanes())
    states = torch.randn(4, 64)
    assert torch.equal(streamed(states), network(3, None)(states))
    assert len(stream._places) == PLACES
