"""The script that measures on a borrowed GPU, dry-run on the CPU: no minute of the GPU is lost to a typo."""

from __future__ import annotations

import json
import runpy
import signal
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan
from transformers import UMT5Config, UMT5EncoderModel, Wav2Vec2Config, Wav2Vec2Model

from model.transformer import CoInteractTransformer3DModel
from tests.model.bench.test_counting import CONFIG

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parent.parent.parent.parent / "benchmarks" / "gpu.py"


class TritonError(Exception):
    """What Triton raises where it cannot compile is a kind of its own."""


@pytest.fixture(scope="module")
def script() -> dict[str, object]:
    return runpy.run_path(str(SCRIPT), run_name="script")


def test_every_part_runs_on_small_networks(script, tmp_path: Path, monkeypatch, capsys) -> None:
    arguments = ["gpu.py", "--device", "cpu", "--tiny", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    assert script["main"]() == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert {line["part"] for line in lines} == {"machine", "attention", *script["PARTS"]}
    assert not [line for line in lines if "error" in line or "skipped" in line]
    assert {line["part"] for line in lines if "took_s" in line} == set(script["PARTS"])
    toys = [line for line in lines if line["part"] == "toy" and "mode" in line]
    assert [line["mode"] for line in toys] == ["resident", "text-offload", "offload"]
    assert {line["most_levels"] for line in toys} == {0}
    peaks = [line for line in lines if "modelled_bytes" in line]
    assert {(line["part"], line["in_parts"]) for line in peaks} == {
        ("forward", False),
        ("forward", True),
        ("offload", False),
        ("compile", False),
    }
    whole, *other = (line["relative_error"] for line in lines if "relative_error" in line)
    assert whole == 0
    assert all(0 < error < 0.1 for error in other)
    presets = [line["preset"] for line in lines if line["part"] == "presets" and "preset" in line]
    assert presets == ["exact", "balanced", "fast"]
    assert lines == [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    assert (tmp_path / "forward.json").stat().st_size > 0


@pytest.mark.parametrize("kind", [RuntimeError, TritonError])
def test_a_part_that_fails_ends_alone_and_is_told(kind, script, tmp_path: Path, monkeypatch, capsys) -> None:
    def broken(run: object) -> None:
        raise kind("no kernel image is available")

    monkeypatch.setitem(script["PARTS"], "toy", broken)
    monkeypatch.setitem(script["PARTS"], "forward", lambda run: run.say("forward", seconds=1))
    options = ["--device", "cpu", "--tiny", "--output", str(tmp_path), "--parts", "toy,forward"]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *options])
    assert script["main"]() == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[1]["error"] == f"{kind.__name__}: no kernel image is available"
    assert lines[2]["part"] == "forward"


@pytest.mark.parametrize(
    "build",
    [
        lambda: CoInteractTransformer3DModel(**CONFIG),
        lambda: AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=0),
        lambda: UMT5EncoderModel(
            UMT5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
        ),
        lambda: Wav2Vec2Model(
            Wav2Vec2Config(
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=16,
                conv_dim=(8,) * 7,
                num_conv_pos_embeddings=16,
                num_conv_pos_embedding_groups=4,
            )
        ),
    ],
    ids=["transformer", "VAE", "text encoder", "speech encoder"],
)
def test_networks_filled_on_the_device_are_whole_and_finite(script, build) -> None:
    filled = script["filled"](build, torch.device("cpu"), torch.bfloat16)
    plain = build()
    state = filled.state_dict()
    assert state.keys() == plain.state_dict().keys()
    for name, tensor in state.items():
        assert tensor.device.type == "cpu", name
        assert tensor.shape == plain.state_dict()[name].shape
        assert tensor.float().isfinite().all(), name
    assert all(tensor.abs().max() > 0 for tensor in state.values() if tensor.ndim > 1)
    kept = tuple(getattr(plain, "_keep_in_fp32_modules", None) or ())
    for name, parameter in filled.named_parameters():
        expected = torch.float32 if any(part in name for part in kept) else torch.bfloat16
        assert parameter.dtype is expected, name


def test_a_part_that_takes_too_long_is_ended_and_told(script, tmp_path: Path, monkeypatch, capsys) -> None:
    def endless(run: object) -> None:
        with script["limited"](0.05):
            while True:
                pass

    monkeypatch.setitem(script["PARTS"], "toy", endless)
    options = ["--device", "cpu", "--tiny", "--output", str(tmp_path), "--parts", "toy"]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *options])
    handler = signal.getsignal(signal.SIGALRM)
    assert script["main"]() == 1
    assert signal.getsignal(signal.SIGALRM) is handler
    assert "TooLong: ended after" in json.loads(capsys.readouterr().out.splitlines()[-1])["error"]


def test_every_part_has_a_price(script) -> None:
    assert list(script["PRICES_S"]) == list(script["PARTS"])
