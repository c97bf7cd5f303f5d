"""The watchdog of `cointeract up`, over a process that answers no check."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from deploy.watchdog import FEWEST_FAILURES, HealthCheck, Watchdog
from tests.faults.stack import eventually

PATIENCE_S = 0.3


@pytest.fixture
def watchdog() -> Iterator[Watchdog]:
    """Its part has failed its checks for longer than the patience, but not longer than that for the start."""
    checks: list[int] = []

    def is_healthy(pid: int) -> bool:
        checks.append(pid)
        return False

    watched = Watchdog(HealthCheck(is_healthy, PATIENCE_S, start_patience_s=60.0), os.getpid())
    watched.start()
    eventually(lambda: len(checks) > 2 * FEWEST_FAILURES, 30, "failed checks")
    assert watched.failing_for() is None, "it may still be starting"
    yield watched
    watched.end()
    watched.join()


def test_a_slow_start_is_not_held_against_a_part_that_then_works(watchdog: Watchdog) -> None:
    watchdog.has_started()
    seconds = watchdog.failing_for()
    assert seconds is None, f"it has just started, and is said to have failed for {seconds:.1f} s"


def test_a_part_that_answers_nothing_after_its_start_is_sick_however_often_it_is_said_to_have_started(
    watchdog: Watchdog,
) -> None:
    def is_sick() -> bool:
        watchdog.has_started()
        return watchdog.failing_for() is not None

    eventually(is_sick, 30, "the end of the patience")
