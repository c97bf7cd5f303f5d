"""The whole network on the kernels, and what one forward costs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from model.parity.__main__ import main as parity
from tests.model.golden import TINY_DIT, official_dit_shapes, official_weights

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
CASES = ROOT / "tests/data/dit_tiny_cases.safetensors"
RECORDED = ("out.product_motion_pose_t500.rgb", "out.plain_t950.rgb")
"""Two are enough where each program runs in an interpreter: everything on, and no experts."""


def test_the_official_numbers_are_met_on_the_kernels(tmp_path, monkeypatch, capsys) -> None:
    pytest.importorskip("triton", reason="the GPU kernels are written in Triton")
    from tests.model.kernels.patched import replace_operations

    weights, cases = tmp_path / "dit.safetensors", tmp_path / "cases.safetensors"
    recorded = load_file(CASES)
    save_file(
        {name: recorded[name] for name in recorded if name.startswith("in.") or name in RECORDED}, cases
    )
    shapes = official_dit_shapes(TINY_DIT, hoi_branch=True)
    save_file(official_weights(shapes, seed=0), weights, metadata={"config": json.dumps(TINY_DIT)})
    replace_operations(monkeypatch, lambda reference, kernel: kernel)
    status = parity(["--weights", str(weights), "--cases", str(cases)])
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert status == 0
    assert len(results) == len(RECORDED)
    assert max(result["max_abs_diff"] for result in results) < 1e-5


def test_a_forward_moves_little_more_than_its_tensors_once_and_launches_few_kernels() -> None:
    """Eager code moved 2,843 GB in 2,653 launches at 720p."""
    done = subprocess.run(
        [sys.executable, "benchmarks/forward_traffic.py", "--json"],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    figures = json.loads(done.stdout)
    assert figures["720x1280 t=500"]["gigabytes"] <= 900
    assert figures["720x1280 t=500"]["launches"] <= 1200
    for size in ("720x1280", "480x832"):
        early, late = figures[f"{size} t=950"], figures[f"{size} t=500"]
        assert early["launches"] < late["launches"]  # no experts while the layout is being decided
        assert early["gigabytes"] < late["gigabytes"]
