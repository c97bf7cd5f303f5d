from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from chaos.observed import percentile
from chaos.own_s3 import storage_of_our_own
from chaos.report import Report
from chaos.run import Options, run_chaos
from cli.app import app
from contract.settings import Settings
from jobs.artifacts import FolderStore
from jobs.journal import Journal

pytestmark = pytest.mark.slow


@pytest.mark.timeout(240)
def test_a_short_fault_mix_against_a_live_stack_breaks_no_promise(tmp_path: Path) -> None:
    report = run_chaos(Options(jobs=40, kills=8, seconds=16, workers=2, rate=20, seed=1), tmp_path)
    assert report.ok(), report
    assert report.jobs == 40
    assert report.succeeded + report.canceled == 40
    assert report.failed == 0
    assert report.faults["FLUSHALL"] == 1
    assert sum(report.faults.values()) == 8
    assert (report.seed, report.max_attempts) == (1, Settings().max_attempts), "as in production"
    assert report.rate == 20
    journal = Journal(FolderStore(tmp_path / "data" / "storage"))
    calm = sorted(journal.read(job_id).submitted.at for job_id in journal.ids())[:20]
    assert (calm[-1] - calm[0]).total_seconds() > 0.5 * 19 / 20, "no faster than it was told"


@pytest.mark.timeout(400)
def test_power_cuts_two_apis_and_a_black_hole_break_no_promise(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("a disk and a network of its own need root")
    words = "chaos --jobs 30 --kills 6 --seconds 18 --workers 2 --apis 2 --power-cuts 2 --webhooks --rate 30"
    done = subprocess.run(
        [sys.executable, "-m", "cli.app", *words.split(), "--seed", "5", "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=390,
    )
    if "cannot be mounted here" in done.stderr or "network of their own" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["ok"]
    assert report["faults"]["power cut"] == 2
    assert (report["jobs"], report["apis"], report["rate"], report["seed"]) == (30, 2, 30, 5)
    assert report["webhooks"] == 6


@pytest.mark.timeout(580)
def test_machines_that_share_a_bucket_and_no_disk_break_no_promise(tmp_path: Path) -> None:
    with storage_of_our_own(seed=2) as storage:
        options = Options(jobs=6, kills=4, seconds=16, workers=2, apis=2, seed=2, storage=storage)
        report = run_chaos(options, tmp_path)
    assert report.ok(), report
    assert report.jobs == report.succeeded + report.canceled == 6
    assert sum(report.faults.values()) == 4
    data = sorted(path.name for path in (tmp_path / "data").iterdir())
    judge = "s3"
    assert data == ["api-0", "api-1", "reaper", "redis", judge, "worker-0", "worker-1"]
    assert not list((tmp_path / "data").rglob("journal")), "the jobs are in the bucket"


@pytest.mark.parametrize(
    "words", [["--storage", "gcs"], ["--storage", "s3", "--power-cuts", "1"]], ids=["unknown", "power cuts"]
)
def test_a_storage_that_cannot_be_tried_is_refused_in_words(words: list[str]) -> None:
    result = CliRunner().invoke(app, ["chaos", *words])
    assert result.exit_code == 1
    assert "--storage" in result.stderr


def test_a_promise_that_is_broken_is_no_success() -> None:
    assert Report().ok()
    broken = ("lost", "duplicated", "partial", "stuck", "flipped", "refused", "unexplained", "webhooks_lost")
    for name in broken:
        assert not Report(**{name: 1}).ok(), name  # type: ignore[arg-type]


def test_percentiles_are_values_that_were_measured() -> None:
    assert percentile([], 0.5) is None
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([3.0, 1.0, 2.0], 0.99) == 3.0
