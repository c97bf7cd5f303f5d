from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from contract.job import Priority, Stage, utcnow
from contract.params import GenerationParams
from contract.speed import Speed, Work
from contract.worker import LiveProgress, RunningJob
from deploy.stack import free_port
from tests.faults.stack import Stack, eventually
from workers.engines.fake import FakeSettings
from workers.gpu_metrics import GpuCollector, families
from workers.metrics import OF_WORKER
from workers.observed import ObservedAttempt


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
        "cointeract_queue_wait_seconds_count 1.0",
        'cointeract_stage_seconds_count{stage="denoising"} 2.0',
        'cointeract_stage_seconds_count{stage="muxing"} 1.0',
        "cointeract_step_seconds_count 6.0",  # of 2 × 4: when the first of a clip began is not reported
    }
    # The child reports the end of an attempt just after the journal has it.
    eventually(lambda: expected <= set(httpx.get(url, trust_env=False).text.splitlines()), what="the counts")


def test_each_process_shows_only_what_it_knows(tmp_path: Path) -> None:
    ports = {"worker_metrics_port": free_port("127.0.0.1"), "reaper_metrics_port": free_port("127.0.0.1")}
    stack = Stack.create(tmp_path, FakeSettings(media=False), **ports)
    try:
        stack.start_worker()
        stack.start_reaper()
        texts = {name: eventually(lambda port=port: scraped(port)) for name, port in ports.items()}
        eventually(lambda: "cointeract_clock_trusted 1.0" in scraped(ports["reaper_metrics_port"]))
    finally:
        stack.close()
    assert "cointeract_clock_trusted" not in texts["worker_metrics_port"]
    assert "cointeract_clip_seconds" not in texts["reaper_metrics_port"]
    assert all("process_resident_memory_bytes" in text for text in texts.values())


def scraped(port: int) -> str:
    """What a process shows; nothing before it listens."""
    try:
        return httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
    except httpx.TransportError:
        return ""


PARAMS = GenerationParams(
    prompts=("a person speaks",), negative_prompt="", width=64, height=64, num_inference_steps=4,
    guidance_scale=1.0, flow_shift=7.0, product_scale=1.0, seed=0, num_clips=4, num_frames=320,
)  # fmt: skip


def test_an_estimate_is_compared_with_what_the_rest_of_the_job_took() -> None:
    now = 0.0
    whole = Work.of(PARAMS)
    speed = Speed(per_step=10 / whole.steps, per_clip=10 / whole.clips)  # 20 s for the whole job
    place = LiveProgress(attempt=2, stage=Stage.LOADING, clip=2, num_clips=4, num_steps=4)
    running = RunningJob(
        job_id="j", attempt=2, owner="o", priority=Priority.NORMAL, cost=1, started_at=utcnow(),
        progress=place, work=whole,
    )  # fmt: skip
    before = sum_of("cointeract_estimate_ratio_sum")
    attempt = ObservedAttempt.begin(running, None, speed, lambda: now)
    now = 15.0  # two clips are left: expected 10 s
    attempt.ends(succeeded=True)
    assert sum_of("cointeract_estimate_ratio_sum") - before == pytest.approx(1.5)
    attempt = ObservedAttempt.begin(running, None, speed, lambda: now)
    now = 900.0
    attempt.ends(succeeded=False)
    assert sum_of("cointeract_estimate_ratio_sum") - before == pytest.approx(1.5)


def sum_of(name: str) -> float:
    return OF_WORKER.get_sample_value(name) or 0.0


def test_steps_that_are_reported_together_count_one_by_one() -> None:
    now = 0.0

    def place(stage: Stage, step: int) -> LiveProgress:
        return LiveProgress(attempt=1, stage=stage, num_clips=1, step=step, num_steps=8)

    running = RunningJob(
        job_id="j", attempt=1, owner="o", priority=Priority.NORMAL, cost=1, started_at=utcnow(),
        progress=place(Stage.LOADING, 0),
    )  # fmt: skip
    counted, summed = sum_of("cointeract_step_seconds_count"), sum_of("cointeract_step_seconds_sum")
    attempt = ObservedAttempt.begin(running, None, None, lambda: now)
    for at, stage, step in ((1.0, Stage.DENOISING, 0), (3.0, Stage.DENOISING, 4), (9.0, Stage.DECODING, 8)):
        now = at
        attempt.goes_on(place(stage, step))
        attempt.goes_on(place(stage, step))  # told again, which changes nothing
    assert sum_of("cointeract_step_seconds_count") - counted == 4
    assert sum_of("cointeract_step_seconds_sum") - summed == pytest.approx(2.0)


@pytest.mark.parametrize("missing", ["", "[N/A]", "[Not Supported]", "N/A"])
def test_a_gpu_that_does_not_tell_all_shows_what_it_tells(missing: str) -> None:
    answer = f"0, 46170, 81559, 97\n1, 4, 81559, {missing}\n\nNo devices were found\n"
    shown = {
        (sample.name, sample.labels["gpu"]): sample.value
        for family in families(answer)
        for sample in family.samples
    }
    assert shown["cointeract_gpu_memory_used_bytes", "0"] == 46170 * 2**20
    assert shown["cointeract_gpu_memory_total_bytes", "1"] == 81559 * 2**20
    assert shown["cointeract_gpu_utilisation_ratio", "0"] == pytest.approx(0.97)
    assert ("cointeract_gpu_utilisation_ratio", "1") not in shown


def test_a_driver_that_does_not_answer_costs_no_other_metric(tmp_path: Path) -> None:
    broken = tmp_path / "nvidia-smi"
    broken.write_text("#!/bin/sh\nexit 9\n")
    broken.chmod(0o755)
    assert not list(GpuCollector(str(broken)).collect())
    assert not list(GpuCollector(str(tmp_path / "missing")).collect())
