"""What holds for every test of this process, and of the processes that tests start."""

from __future__ import annotations

import os

# The networks of the tests are so small that two threads spend most of their time waiting for each other.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

if not torch.cuda.is_available():
    # Before anything imports Triton: its interpreter then runs the GPU kernels on the CPU.
    os.environ.setdefault("TRITON_INTERPRET", "1")

STACKS = ("deploy", "examples", "faults", "workers", "client")
"""Folders whose tests run processes against short deadlines."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several test processes (`make test`), a file's tests stay together for its fixtures' sake, and all
    tests with stacks run one after the other.
    """
    for item in items:
        folder = item.path.parent.name
        group = "stacks" if folder in STACKS else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))
