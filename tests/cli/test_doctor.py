"""`cointeract doctor`: what it finds, and its exit status."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from cli.app import app
from cli.attention import advice_for
from cli.doctor import (
    Gpu,
    Machine,
    Status,
    check_disk,
    check_fit,
    check_fp8,
    check_privacy,
    check_redis_at,
    check_storage,
    judge_fits,
)
from contract.attention import AttentionBackend
from contract.card import CheckpointCard, CheckpointDefaults
from contract.settings import Settings
from jobs.artifacts import FolderStore
from jobs.redis_server import running_redis
from model import fp8_choice
from model.attention_choice import AttentionChoice, AttentionShape, Measured
from model.checkpoints.tiny import write_tiny_checkpoint
from model.memory.needs import OFFICIAL_SIZE, with_fp8
from server.keys import create_key
from tests.s3_server import BUCKET, empty_bucket, s3_server

pytestmark = pytest.mark.slow

GB = 10**9
CARD = CheckpointCard(
    name="official",
    trained=True,
    sizes=("720x1280",),
    min_side=256,
    max_pixels=1280 * 720,
    defaults=CheckpointDefaults(num_inference_steps=40, guidance_scale=7, flow_shift=7, negative_prompt=""),
)
runner = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"})


def machine(gpu_gb: int | None, host_gb: int) -> Machine:
    gpus = () if gpu_gb is None else (Gpu("Test GPU", gpu_gb * GB, gpu_gb * GB, "9.0"),)
    return Machine(gpus, host_gb * GB, 8)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_checkpoint(folder)
    return folder


def test_a_healthy_machine_gets_exit_status_0_and_a_table(tiny: Path, tmp_path: Path) -> None:
    result = runner.invoke(app, ["doctor", "--checkpoint", str(tiny), "--data", str(tmp_path / "data")])
    assert result.exit_code == 0, result.output
    assert "Redis" in result.stdout
    assert "runs on torch" in result.stdout
    assert "720x1280" in result.stdout
    assert not list(tmp_path.iterdir())


def test_json_tells_the_same_to_programs(tmp_path: Path) -> None:
    result = runner.invoke(app, ["doctor", "--json", "--data", str(tmp_path)])
    report = json.loads(result.stdout)
    assert report["healthy"] is (result.exit_code == 0)
    assert {finding["topic"] for finding in report["findings"]} >= {"machine", "attention", "disk", "redis"}
    assert {fit["checkpoint"] for fit in report["fits"]} == {"official weights"}
    assert len(report["fits"]) == 2 * 3 * 2 * 2  # sizes, modes, in parts or not, with and without fp8


def test_a_kernel_that_is_set_but_not_installed_is_a_problem(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("COINTERACT_ATTENTION", "flash-3")
    result = runner.invoke(app, ["doctor", "--json", "--data", str(tmp_path)])
    assert result.exit_code == 1
    findings = [
        finding for finding in json.loads(result.stdout)["findings"] if finding["topic"] == "attention"
    ]
    assert findings[0]["status"] == "problem"
    assert "FA3" in findings[0]["message"]
    assert "COINTERACT_ATTENTION" in findings[0]["advice"]
    assert "TFLOP/s" in findings[1]["message"]


def test_what_would_be_faster_is_said_where_it_is_known_and_not_yet_there() -> None:
    def choice(**seconds: float | None) -> AttentionChoice:
        found = (Measured(AttentionBackend(name.replace("_", "-")), s, "why") for name, s in seconds.items())
        return AttentionChoice(AttentionBackend.TORCH, AttentionShape(64, 2, 16), tuple(found))

    without = choice(torch=1.0, cudnn=None, flash_3=None)
    assert "pip install kernels" in advice_for(without, (9, 0))
    assert "cuDNN cannot be used: why" in advice_for(without, (9, 0))
    assert advice_for(choice(torch=1.0, flash_3=0.5), (9, 0)) == ""
    assert advice_for(without, (8, 0)) == ""  # torch's own is FlashAttention 2 there
    assert advice_for(without, None) == ""


def test_an_unreachable_redis_is_a_problem_with_advice_and_exit_status_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COINTERACT_REDIS_URL", f"unix://{tmp_path}/nobody-listens.sock")
    result = runner.invoke(app, ["doctor", "--json", "--data", str(tmp_path)])
    assert result.exit_code == 1
    (finding,) = [finding for finding in json.loads(result.stdout)["findings"] if finding["topic"] == "redis"]
    assert finding["status"] == "problem"
    assert "COINTERACT_REDIS_URL" in finding["advice"]


def test_a_checkpoint_with_a_missing_file_is_a_problem(tiny: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(tiny), str(copy)], check=True)
    next((copy / "vae").glob("*.safetensors")).unlink()
    result = runner.invoke(app, ["doctor", "--checkpoint", str(copy), "--data", str(tmp_path / "data")])
    assert result.exit_code == 1
    assert "has no safetensors weights" in result.stdout


def test_verify_finds_a_changed_byte_that_a_look_at_the_names_does_not(tiny: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(tiny), str(copy)], check=True)
    listing = subprocess.run(
        ["sha256sum", "cointeract.json"], cwd=copy, capture_output=True, text=True, check=True
    )
    (copy / "SHA256SUMS").write_text(listing.stdout)
    card = copy / "cointeract.json"
    card.write_text(card.read_text() + " ")
    arguments = ["doctor", "--checkpoint", str(copy), "--data", str(tmp_path / "data")]
    assert runner.invoke(app, arguments).exit_code == 0
    result = runner.invoke(app, [*arguments, "--verify"])
    assert result.exit_code == 1
    assert "cointeract.json differ from their checksums" in result.stdout


@pytest.mark.parametrize(
    ("gpu_gb", "host_gb", "status", "words"),
    [
        (80, 128, Status.OK, "mode resident"),
        (24, 128, Status.OK, "mode offload"),
        (13, 128, Status.OK, "mode offload, activations in parts."),
        (24, 16, Status.PROBLEM, "of main memory"),
        (12, 128, Status.PROBLEM, "even offloaded"),
        (None, 32, Status.PROBLEM, "do not fit"),
        (None, 256, Status.WARNING, "takes hours"),
    ],
)
def test_what_the_official_checkpoint_gets_on_different_machines(
    gpu_gb: int | None, host_gb: int, status: Status, words: str
) -> None:
    finding = check_fit("official", OFFICIAL_SIZE, CARD, machine(gpu_gb, host_gb))
    assert finding.status is status
    assert words in finding.message
    assert bool(finding.advice) == (status is not Status.OK)


def test_gpus_that_are_faster_together_are_told_so() -> None:
    """One GPU of 57 GB has no room for the text encoder beside a clip of 720p, not even in parts."""
    one = machine(57, 128)
    assert "together" not in check_fit("official", OFFICIAL_SIZE, CARD, one).message
    four = replace(one, gpus=one.gpus * 4)
    message = check_fit("official", OFFICIAL_SIZE, CARD, four).message
    assert "fits on Test GPU in mode text-offload" in message
    assert "2 GPUs together (--gpus-per-job 2) fit it in mode resident" in message


def test_fp8_makes_720p_fit_where_bf16_does_not() -> None:
    fits = {
        (fit.mode.value, fit.fp8): fit.fits
        for fit in judge_fits("official", OFFICIAL_SIZE, machine(45, 128), "720x1280")
        if not fit.in_parts
    }
    assert fits["text-offload", False] is False
    assert fits["text-offload", True] is True


def test_doctor_says_how_feed_forwards_in_8_bits_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    converted = with_fp8(OFFICIAL_SIZE)
    assert not list(check_fp8("official", converted, True)), "no GPU"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    [older] = check_fp8("official", converted, True)
    assert "expanded to bf16 for each product: compute capability 8.6 is below 8.9" in older.message
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(fp8_choice, "why_not_tried", lambda device: None)
    assert [found.message for found in check_fp8("official", converted, True)] == [
        "official: its feed-forwards compute in 8 bits."
    ]
    [off] = check_fp8("official", converted, False)
    assert "COINTERACT_FP8_COMPUTE is off" in off.message
    assert not list(check_fp8("official", OFFICIAL_SIZE, True))


def test_a_redis_without_append_only_file_and_with_eviction_is_reported(tmp_path: Path) -> None:
    with running_redis(tmp_path) as server:
        assert [finding.status for finding in check_redis_at(server.url)] == [Status.OK]
        from redis import Redis

        client = Redis.from_url(server.url)
        client.config_set("appendonly", "no")
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.close()
        findings = list(check_redis_at(server.url))
    assert [finding.status for finding in findings] == [Status.OK, Status.WARNING, Status.PROBLEM]
    assert "noeviction" in findings[2].advice


def test_on_a_host_without_torch_the_command_says_where_to_run_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delitem(sys.modules, "cli.doctor")
    monkeypatch.setitem(sys.modules, "torch", None)
    result = runner.invoke(app, ["doctor", "--data", str(tmp_path)])
    assert result.exit_code == 1
    assert "torch is not installed here" in result.stderr
    assert "Traceback" not in result.output


def test_too_little_free_disk_is_a_problem(tmp_path: Path) -> None:
    findings = list(check_disk(Settings(data_dir=tmp_path, min_free_bytes=10**18)))
    assert [finding.status for finding in findings] == [Status.OK, Status.PROBLEM]
    assert "jobs are refused" in findings[1].message


def test_a_folder_that_cannot_be_written_is_a_problem() -> None:
    (finding,) = check_disk(Settings(data_dir=Path("/proc/no-one-writes-here")))
    assert finding.status is Status.PROBLEM
    assert "cannot be written" in finding.message


def test_secrets_that_others_may_read_are_a_problem(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    store = FolderStore(settings.storage_dir)
    create_key(store, "ada")
    assert {finding.status for finding in check_privacy(settings)} == {Status.OK}
    (settings.storage_dir / "keys").chmod(0o755)
    (finding,) = check_privacy(settings)
    assert finding.status is Status.PROBLEM
    assert "keys" in finding.message
    assert "chmod" in finding.advice
    (settings.storage_dir / "keys").chmod(0o700)
    tmp_path.chmod(0o777)
    (finding,) = check_privacy(settings)
    assert finding.status is Status.PROBLEM, "who may rename the storage may put another in its place"


def test_a_bucket_is_tried_and_one_that_could_lose_jobs_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server() as server:
        empty_bucket(server, monkeypatch)
        settings = Settings(data_dir=tmp_path, storage_url=f"s3://{BUCKET}/here")
        (finding,) = check_storage(settings)
        assert (finding.status, "wrote, read and removed" in finding.message) == (Status.OK, True)
        server.dropped_headers = frozenset({"if-none-match"})
        (finding,) = check_storage(settings)
        assert (finding.status, "conditional writes" in finding.message) == (Status.PROBLEM, True)
        (finding,) = check_storage(Settings(data_dir=tmp_path, storage_url="s3://no-such-bucket"))
        assert (finding.status, "NoSuchBucket" in finding.message) == (Status.PROBLEM, True)
    assert list(check_storage(Settings(data_dir=tmp_path))) == []
