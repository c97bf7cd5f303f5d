"""One tenant's noise beside another's few jobs, on a live stack. How fast, `cointeract chaos` measures."""

from __future__ import annotations

import pytest

from chaos.neighbour import run_neighbours

pytestmark = pytest.mark.slow


def test_a_modest_tenant_is_served_beside_a_greedy_one() -> None:
    report = run_neighbours(seconds=3.0, seed=1)
    assert set(report.modest) == {"202"}, "every submit of the modest tenant is taken"
    assert report.greedy, "the greedy one is slowed down, and refused beyond its share, but answered"
    assert not [status for status in report.greedy if status.startswith("5")], report.greedy
