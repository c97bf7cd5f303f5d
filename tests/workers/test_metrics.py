from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from deploy.stack import free_port
from tests.faults.stack import Stack, eventually
from workers.engines.fake import FakeSettings


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    stack = Stack.create(
        tmp_path, FakeSettings(seconds_per_step=0.01, media=False), worker_metrics_port=free_port("127.0.0.1")
    )
    yield stack
    stack.close()


def test_a_worker_counts_attempts_and_clips_for_prometheus(stack: Stack) -> None:
    stack.start_worker()
    stack.wait(stack.submit(num_clips=2))
    url = f"http://127.0.0.1:{stack.settings.worker_metrics_port}/metrics"
    expected = {
        'cointeract_attempts_total{cause="",outcome="succeeded",stage="muxing"} 1.0',
        "cointeract_clip_seconds_count 2.0",
    }
    # The child reports the end of an attempt just after the journal has it.
    eventually(lambda: expected <= set(httpx.get(url, trust_env=False).text.splitlines()), what="the counts")
