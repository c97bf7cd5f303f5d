"""Several processes on the CPU that are the ranks of one worker."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from model.parallel.ranks import Place, Ranks

TIMEOUT_S = 120.0

# Processes are forked from one that has imported torch and computed nothing: seconds per rank saved.
multiprocessing.set_forkserver_preload(["model.pipeline", "tests.model.ranks"])


def on_ranks(count: int, folder: Path, work: Callable[..., object], *arguments: object) -> list[Any]:
    """What `work(ranks, *arguments)`, a function of a module, returns on each of `count` ranks."""
    folder.mkdir(parents=True, exist_ok=True)
    mp.start_processes(
        _run, args=(count, str(folder), work, arguments), nprocs=count, start_method="forkserver"
    )
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(count)]


def _run(rank: int, count: int, folder: str, work: Callable[..., object], arguments: tuple[object]) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    ranks = Ranks(Place(rank, ("cpu",) * count, Path(folder) / "meeting", TIMEOUT_S))
    torch.save(work(ranks, *arguments), Path(folder) / f"{rank}.pt")
    ranks.leave()
