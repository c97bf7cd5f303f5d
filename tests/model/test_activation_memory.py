"""What a forward holds at once, counted at full size on tensors without data, against the memory model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from contract.memory import MemoryMode
from model.memory.needs import (
    CACHED_BYTES,
    DECODE_BYTES_PER_PIXEL,
    ENCODE_BYTES_PER_PIXEL,
    HIDDEN_STATES_PER_TOKEN,
    IN_PARTS_STATES_PER_TOKEN,
    LOADED_BYTES,
    OFFICIAL_SIZE,
    Plan,
    needed,
    tokens,
)

ROOT = Path(__file__).parent.parent.parent

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def counted() -> dict[str, dict[str, float]]:
    done = subprocess.run(
        [sys.executable, "benchmarks/activation_memory.py"],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    figures: dict[str, dict[str, float]] = json.loads(done.stdout)
    return figures


@pytest.mark.parametrize(("width", "height"), [(480, 832), (720, 1280)])
def test_the_memory_model_says_what_is_counted_and_not_much_more(counted, width: int, height: int) -> None:
    figures = counted[f"{width}x{height}"]
    vector = LOADED_BYTES * OFFICIAL_SIZE.width * tokens(width, height)
    cached = CACHED_BYTES * OFFICIAL_SIZE.layers * OFFICIAL_SIZE.width
    for modelled, name in (
        (HIDDEN_STATES_PER_TOKEN * vector + cached, "transformer_gb"),
        (IN_PARTS_STATES_PER_TOKEN * vector + cached, "transformer_in_parts_gb"),
        (DECODE_BYTES_PER_PIXEL * width * height, "vae_decode_gb"),
        (ENCODE_BYTES_PER_PIXEL * width * height, "vae_encode_gb"),
    ):
        assert figures[name] <= modelled / 1e9 <= 1.03 * figures[name], name
    # Bands of a frame are decoded in less than encoding takes.
    assert figures["vae_decode_in_bands_gb"] < figures["vae_encode_gb"]


def test_720p_renders_in_16_gigabytes_and_in_parts_on_a_card_of_12() -> None:
    assert needed(OFFICIAL_SIZE, Plan(MemoryMode.OFFLOAD, in_parts=True), 720, 1280).gpu < 12 * 2**30
    assert needed(OFFICIAL_SIZE, Plan(MemoryMode.OFFLOAD), 720, 1280).gpu < 16e9
