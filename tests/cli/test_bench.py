"""`cointeract bench` and `cointeract profile` through the command line, on small networks."""

from __future__ import annotations

import collections
import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.app import app
from contract.card import CheckpointCard
from deploy.samples import BUNDLED_CHECKPOINT
from model.checkpoints.card_file import rewrite_card
from model.checkpoints.tiny import CARD, write_tiny_checkpoint

pytestmark = pytest.mark.slow

LAYERS = 4


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With two small sizes, for speed."""
    folder = tmp_path_factory.mktemp("bench") / "tiny"
    write_tiny_checkpoint(folder)
    rewrite_card(CheckpointCard(**{**CARD.model_dump(), "sizes": ("64x64", "64x96")}), folder)
    return folder


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_all_is_measured_at_each_size_of_the_checkpoint(tiny: Path) -> None:
    options = ("--checkpoint", tiny, "--device", "cpu", "--rounds", 1, "--clips", 2, "--steps", 1)
    report = json.loads(run("bench", *options, "--json"))
    assert report["setup"]["memory_mode"] == "resident"
    assert report["setup"]["attention"]["teraflops"]["torch"] > 0
    forwards = report["forwards"]
    assert [(one["size"], one["timestep"]) for one in forwards] == [
        *(("64x64", 500.0), ("64x64", 950.0)),
        *(("64x96", 500.0), ("64x96", 950.0)),
    ]
    small, without_experts, large, _ = forwards
    assert small["launches"] > without_experts["launches"]
    assert small["launches"] == large["launches"]
    assert small["elementwise_bytes"] < large["elementwise_bytes"]
    for one in forwards:
        assert one["floor_share"] == pytest.approx(one["floor_seconds"] / one["spent"]["cpu_seconds"])
        work = one["matrix_flop"] + one["attention_flop"]
        assert one["teraflops"] == pytest.approx(work / one["spent"]["cpu_seconds"] / 1e12)
        slower, faster = sorted((one["matrix_teraflops"], one["attention_teraflops"]))
        assert slower * 0.999 < one["teraflops"] / one["floor_share"] < faster * 1.001
        assert one["peak_bytes"] > 10**8
    assert len(report["parts"]) == 4
    assert all(part["spent"]["cpu_seconds"] > 0 for part in report["parts"])
    job = report["job"]
    assert (job["clips"], job["steps"]) == (2, 1)
    assert {"encoding", "denoising", "decoding", "encoding clips"} == job["stages"].keys()
    assert sum(job["stages"].values()) <= job["cpu_seconds"]


def test_the_table_says_the_same_in_markdown(tiny: Path) -> None:
    shown = run(
        "bench", "--checkpoint", tiny, "--device", "cpu", "--size", "64x64", "--rounds", 1, "--clips", 0
    )
    tables = [line for line in shown.splitlines() if line.startswith("|")]
    assert tables[0].split("|")[2].strip() == "64x64, t = 500"
    assert any(line.startswith("| share of the floor") and "%" in line for line in tables)
    assert not any("a job" in line for line in tables)
    assert len({line.count("|") for line in tables[:14]}) == 1


def test_the_trace_of_a_forward_names_each_block_once(tiny: Path, tmp_path: Path) -> None:
    trace = tmp_path / "new" / "trace.json"
    run("profile", trace, "--checkpoint", tiny, "--device", "cpu", "--size", "64x64")
    events = json.loads(trace.read_text())["traceEvents"]
    spans = {event["name"]: event for event in events if event["name"].startswith("block ")}
    assert len([event for event in events if event["name"].startswith("block ")]) == LAYERS
    assert spans.keys() == {f"block {number}" for number in range(LAYERS)}
    starts = [spans[f"block {number}"]["ts"] for number in range(LAYERS)]
    assert starts == sorted(starts)
    inside = [
        event["name"]
        for event in events
        if event.get("cat") == "cpu_op"
        and spans["block 1"]["ts"] <= event["ts"] < spans["block 1"]["ts"] + spans["block 1"]["dur"]
    ]
    assert {"aten::linear", "cointeract::norm_rotary"} <= set(inside)


def test_the_trace_of_a_clip_holds_every_pass_of_every_step(tiny: Path, tmp_path: Path) -> None:
    trace = tmp_path / "clip.json"
    options = ("--checkpoint", tiny, "--device", "cpu", "--size", "64x64")
    run("profile", trace, *options, "--what", "clip", "--steps", 2)
    events = json.loads(trace.read_text())["traceEvents"]
    calls = collections.Counter(event["name"] for event in events if event["name"].startswith("block "))
    passes = 2 * 2  # with guidance
    assert calls == {f"block {number}": passes for number in range(LAYERS)}
    assert any("conv" in event["name"] for event in events)  # the VAE


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("bench", "--size", "100x100"), "multiples of 16"),
        (("profile", "trace.json", "--size", "4096x4096"), "size"),
        (("bench", "--checkpoint", "/nowhere"), "no checkpoint folder"),
        (("bench", "--official", "/nowhere"), "no clone of the official"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_a_sentence(arguments: tuple[str, ...], said: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert said in result.stderr
    assert "Traceback" not in result.output


def test_ours_and_the_official_code_make_the_same_frames_and_ours_is_faster() -> None:
    clone = os.environ.get("OFFICIAL_CODE")
    if clone is None:
        pytest.skip("OFFICIAL_CODE names no clone of the official repository")
    options = ("--checkpoint", BUNDLED_CHECKPOINT, "--rounds", 1, "--clips", 0, "--official", clone)
    official = json.loads(run("bench", *options, "--json"))["official"]
    assert official["job"]["difference"] <= 1
    assert all(one["difference"] < 1e-5 for one in official["forwards"])
    assert official["job"]["ours"] < official["job"]["official"]
