from __future__ import annotations

import os
import signal
from pathlib import Path

import av
import httpx
import pytest

from contract.attention import AttentionBackend
from deploy.stack import free_port
from model.checkpoints.tiny import write_tiny_checkpoint
from tests.faults.stack import Stack
from workers.engines.fake import FakeSettings

pytestmark = pytest.mark.slow


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    stack = Stack.create(
        tmp_path,
        FakeSettings(),
        stall_timeout_s=600.0,
        worker_metrics_port=free_port("127.0.0.1"),
        provenance=False,
    )
    write_tiny_checkpoint(tmp_path / "tiny", seed=0)
    stack.checkpoint_folder, stack.checkpoint, stack.side = tmp_path / "tiny", "tiny-random", 128
    return stack


@pytest.mark.timeout(600)
def test_the_real_network_resumes_behind_a_finished_clip_and_gives_the_same_bytes(stack: Stack) -> None:
    try:
        stack.start_reaper()
        worker = stack.start_worker()
        broken = stack.submit("a person speaks", "and smiles", num_clips=2, steps=2, seed=3)
        stack.wait_clips(broken, 1, timeout_s=200)
        os.kill(stack.child_of(worker), signal.SIGKILL)
        job = stack.wait(broken, timeout_s=200)
        assert (job.attempt, [clip.attempt for clip in job.clips]) == (2, [1, 2])

        # What attention ran on is part of the job's record, of the worker's, and of its metrics.
        assert job.attention is AttentionBackend.TORCH
        (info,) = stack.queue.workers()
        assert info.attention is not None
        assert info.attention.backend is AttentionBackend.TORCH
        url = f"http://127.0.0.1:{stack.settings.worker_metrics_port}/metrics"
        metrics = httpx.get(url, trust_env=False).text
        assert 'cointeract_attention_info{backend="torch"} 1.0' in metrics
        assert 'cointeract_attention_teraflops{backend="torch-math"}' in metrics

        unbroken = stack.submit("a person speaks", "and smiles", num_clips=2, steps=2, seed=3)
        reference = stack.wait(unbroken, timeout_s=200)
        assert stack.content(broken, job.video) == stack.content(unbroken, reference.video)
        assert stack.content(broken, job.poster) == stack.content(unbroken, reference.poster)
        assert job.video is not None
        with av.open(str(stack.path(broken, job.video))) as video:
            assert (video.streams.video[0].frames, video.streams.video[0].width) == (140, 128)
        assert job.duration_s == pytest.approx(140 / 25)
    finally:
        stack.close()
