from __future__ import annotations

from pathlib import Path

import pytest

from chaos.run import Options, percentile, run_chaos

pytestmark = pytest.mark.slow


@pytest.mark.timeout(240)
def test_a_short_fault_mix_against_a_live_stack_breaks_no_promise(tmp_path: Path) -> None:
    report = run_chaos(Options(jobs=40, kills=8, seconds=16, workers=2, seed=1), tmp_path)
    assert report.ok(), report
    assert report.jobs == 40
    assert report.succeeded + report.canceled == 40
    assert report.failed == 0
    assert report.faults["FLUSHALL"] == 1
    assert sum(report.faults.values()) == 8


def test_percentiles_are_values_that_were_measured() -> None:
    assert percentile([], 0.5) is None
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([3.0, 1.0, 2.0], 0.99) == 3.0
