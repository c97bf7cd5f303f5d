"""The kernels as a GPU's compiler sees them, without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

pytest.importorskip("triton", reason="the GPU kernels are written in Triton")

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def compiled() -> dict[str, dict[str, int]]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.model.kernels.compile_without_gpu"],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, dict[str, int]] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_kernels_compile_for_an_h100_at_the_real_width_without_spilling(compiled) -> None:
    assert len(compiled["spilled"]) == 8
    assert set(compiled["spilled"].values()) == {0}
    assert all(compiled["vectorised"].values()), compiled["vectorised"]


def test_no_layout_makes_another_variant_of_a_kernel(compiled) -> None:
    """Clip 0, later clips, without product, with pose, other sizes: the first one has compiled everything."""
    assert compiled["last"] == compiled["first"]
    # With and without a sum before the norm, for the block and for the head; with and without experts.
    assert sum(compiled["first"].values()) <= 12
