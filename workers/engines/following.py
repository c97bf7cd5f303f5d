"""The part of the real engine that runs on every rank but the first."""

from __future__ import annotations

from dataclasses import replace

import torch

from model.checkpoints.load import load_renderer
from model.fp8_choice import choose_fp8
from model.memory.offload import next_mode
from model.parallel.collectives import PeerLost
from model.parallel.ranks import Ranks
from model.parallel.together import follow
from workers.engines.pipeline import dtype_on, place_of, set_attention
from workers.messages import LONGEST_CAUSE, ChildConfig, RankFailed


class Following:
    """Holds transformer and VAE; rank 0 encodes for all."""

    def __init__(self, config: ChildConfig) -> None:
        """Load, and join the others. Raises as `load_renderer` and `Ranks` do."""
        place = place_of(config)
        if place is None:
            raise ValueError("a worker with one device has no other ranks")
        ranks = len(place.devices)
        renderer = load_renderer(
            config.folder, place.device, dtype_on(place.device), config.memory_mode, ranks
        )
        mode = renderer.streams.mode
        self._next_memory_mode = (
            next_mode(config.folder, mode, ranks) if place.device.type == "cuda" else None
        )
        self.ranks = Ranks(place)
        self._renderer = replace(renderer, ranks=self.ranks)
        set_attention(renderer.transformer, config.folder, config.settings.attention, place.device)
        choose_fp8(renderer.transformer, config.settings.fp8_compute, place.device)

    def run(self) -> None:
        """Follow rank 0 until it says that it ends. Raises whatever goes wrong."""
        follow(self._renderer, self.ranks)
        self.ranks.leave()

    def failure(self, error: Exception) -> RankFailed:
        """What the supervisor is told of it."""
        out_of_memory = isinstance(error, torch.OutOfMemoryError | MemoryError)
        return RankFailed(
            cause=f"{type(error).__name__}: {error}"[:LONGEST_CAUSE],
            out_of_memory=out_of_memory,
            fall_back=self._next_memory_mode if out_of_memory else None,
            peer_lost=isinstance(error, PeerLost),
        )
