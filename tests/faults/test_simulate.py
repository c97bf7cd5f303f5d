from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from cli.app import app

pytestmark = pytest.mark.slow


def test_simulated_workers_share_a_planned_queue_fairly() -> None:
    words = "simulate --workers 20 --jobs 2400 --owners 20 --claims 300 --seed 4"
    result = CliRunner().invoke(app, words.split())
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert figures["served_worst"] < 1.5
    assert figures["served_fairness"] > 0.95
    assert figures["newcomer_wait_s"] < 120, "a job of a new owner is the next, or the one behind"
    assert 300 < figures["redis_bytes_per_job"] < 3000
    assert set(figures["snapshot_ms"]) == {"1000", "2400"}
