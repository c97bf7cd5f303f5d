"""What holds for every test of this process."""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    # Before anything imports Triton: its interpreter then runs the GPU kernels on the CPU.
    os.environ.setdefault("TRITON_INTERPRET", "1")
