from __future__ import annotations

import errno
import logging
import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from contract.job import JobState, OnProgress, Stage
from contract.worker import WorkerInfo
from tests.faults.stack import Stack
from workers.attempt import Runner
from workers.engines.engine import Engine, FinishedVideo, OutOfMemory, RenderRequest
from workers.engines.fake import FakeClip, FakeEngine, FakeSettings
from workers.messages import Ended, Message, Progressed, Working
from workers.provenance import Provenance

pytestmark = pytest.mark.slow


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    stack = Stack.create(tmp_path, FakeSettings(media=False), lease_ttl_s=600)
    stack.queue.beat(WorkerInfo(name="w", checkpoint="fake", device="cpu", ready=True))
    yield stack
    stack.close()


def runner(stack: Stack, engine: Engine) -> tuple[Runner, list[Message]]:
    """A runner in this process, and what it tells its supervisor."""
    told: list[Message] = []
    made = Runner(
        worker="w",
        journal=stack.journal,
        store=stack.store,
        queue=stack.queue,
        settings=stack.settings,
        engine=engine,
        tell=told.append,
        stopping=threading.Event(),
        provenance=Provenance(stack.store, stack.settings),
    )
    return made, told


class Holding(FakeEngine):
    """Holds an array while it renders and looks, when told to let go, whether somebody still holds it."""

    def __init__(self, end: type[Exception] | None = None) -> None:
        super().__init__(FakeSettings(seconds_per_step=0, media=False))
        self.end = end
        self.freed: list[bool] = []
        self._held: weakref.ref[np.ndarray] | None = None

    def render(self, request: RenderRequest, on_progress: OnProgress) -> Iterator[FakeClip]:
        large = np.zeros(1000)
        self._held = weakref.ref(large)
        if self.end is not None:
            raise self.end("the photo is empty")
        yield from super().render(request, on_progress)

    def release(self) -> None:
        self.freed.append(self._held is None or self._held() is None)


@pytest.mark.parametrize("kind", [None, RuntimeError, ValueError, OutOfMemory])
def test_however_an_attempt_ends_its_memory_is_free_when_the_engine_releases_it(
    stack: Stack, kind: type[Exception] | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)  # captured log records would keep the traceback alive
    engine = Holding(kind)
    made, _ = runner(stack, engine)
    job_id = stack.submit()
    made.render_next("fake")
    assert stack.job(job_id).state is not JobState.PROCESSING
    assert engine.freed == [True]


def test_a_canceled_render_lets_go_of_its_memory(stack: Stack) -> None:
    engine = Holding()
    made, told = runner(stack, engine)
    job_id = stack.submit(num_clips=5)

    def tell(message: Message) -> None:
        told.append(message)
        if isinstance(message, Progressed) and stack.job(job_id).clips:  # stored behind the next one's back
            stack.cancel(job_id)
            at_cancel.append(len(told))
            made.tell = told.append

    at_cancel: list[int] = []
    made.tell = tell
    made.render_next("fake")
    assert engine.freed == [True]
    assert stack.job(job_id).state is JobState.CANCELED
    assert len(stack.job(job_id).clips) < 5
    ended = told[-1]
    assert isinstance(ended, Ended)
    assert ended.outcome == "superseded"
    later = [message for message in told[at_cancel[0] :] if isinstance(message, Progressed)]
    assert not later, "it stopped at the very step"


def test_inputs_that_can_never_work_fail_the_job_at_once(stack: Stack) -> None:
    made, _ = runner(stack, Holding(ValueError))
    job_id = stack.submit()
    made.render_next("fake")
    job = stack.job(job_id)
    assert job.error is not None
    assert (job.state, job.error.code, job.error.message) == (
        JobState.FAILED,
        "invalid_input",
        "the photo is empty",
    )


def test_an_error_in_the_model_names_stage_and_cause_in_journal_and_log(
    stack: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    made, told = runner(stack, FakeEngine(FakeSettings(seconds_per_step=0, media=False)))
    made.settings = stack.settings.model_copy(update={"max_attempts": 1})
    job_id = stack.submit("a person speaks", "fault:error")
    made.render_next("fake")
    job = stack.job(job_id)
    assert job.error is not None
    assert (job.error.code, job.error.stage) == ("error", Stage.ENCODING)
    assert "this fault was ordered" in job.error.message
    assert any(getattr(record, "job_id", "") == job_id and record.exc_info for record in caplog.records)
    assert len(job.clips) == 1, "finished clips stay available"
    ended = told[-1]
    assert isinstance(ended, Ended)
    assert (ended.outcome, ended.cause, ended.stage) == ("failed", "error", Stage.ENCODING)
    assert not made.broken, "the process can go on"


def test_progress_never_goes_back_and_ends_below_a_hundred(stack: Stack) -> None:
    made, told = runner(stack, FakeEngine(FakeSettings(seconds_per_step=0, media=False)))
    stack.submit(num_clips=3, steps=4)
    made.render_next("fake")
    percents = [message.progress.percent() for message in told if isinstance(message, Progressed)]
    assert percents == sorted(percents)
    assert percents[0] == 0
    assert 0 < percents[-1] < 100
    assert isinstance(told[0], Working)
    stages = {message.progress.stage for message in told if isinstance(message, Progressed)}
    assert stages == {Stage.LOADING, Stage.ENCODING, Stage.DENOISING, Stage.DECODING, Stage.MUXING}


def test_a_ticket_with_nothing_to_render_does_nothing(stack: Stack) -> None:
    made, told = runner(stack, FakeEngine(FakeSettings(media=False)))
    made.render_next("fake")
    assert told == []


def test_a_job_another_worker_was_faster_to_claim_is_passed_over(stack: Stack) -> None:
    made, _ = runner(stack, FakeEngine(FakeSettings(seconds_per_step=0, media=False)))
    first, second = stack.submit(), stack.submit()
    stack.cancel(first)  # and its entry in the waiting set stays
    made.render_next("fake")
    assert stack.job(second).state is JobState.SUCCEEDED
    assert stack.queue.waiting_ids(stack.checkpoint) == set()


def test_an_owner_at_its_limit_waits_while_others_run(stack: Stack) -> None:
    made, _ = runner(stack, FakeEngine(FakeSettings(seconds_per_step=0, media=False)))
    limited = stack.submit(max_running=0)
    free = stack.submit(owner="bob")
    made.render_next("fake")
    made.render_next("fake")
    assert stack.job(limited).state is JobState.QUEUED
    assert stack.job(free).state is JobState.SUCCEEDED


class Finishing(FakeEngine):
    """Fails once while it joins the clips."""

    failures = 1
    number = errno.ENOSPC

    def finish(
        self, request: RenderRequest, clips: Sequence[Path], video: Path, poster: Path
    ) -> FinishedVideo:
        if self.failures:
            self.failures -= 1
            raise OSError(self.number, os.strerror(self.number))
        return super().finish(request, clips, video, poster)


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ESTALE, errno.EIO, errno.ENOENT]
)
def test_storage_that_fails_while_joining_is_waited_out(stack: Stack, number: int) -> None:
    engine = Finishing(FakeSettings(seconds_per_step=0, media=False))
    engine.number = number
    made, _ = runner(stack, engine)
    job_id = stack.submit()
    made.render_next("fake")
    assert (stack.job(job_id).state, stack.job(job_id).attempt) == (JobState.SUCCEEDED, 1)


class Unreadable(FakeEngine):
    """Cannot read its inputs."""

    number = errno.ESTALE

    def render(self, request: RenderRequest, on_progress: OnProgress) -> Iterator[FakeClip]:
        raise OSError(self.number, os.strerror(self.number))
        yield from super().render(request, on_progress)


@pytest.mark.parametrize(("number", "burned"), [(errno.ESTALE, 0), (errno.EROFS, 0), (errno.EIO, 1)])
def test_an_input_that_cannot_be_read_counts_against_the_job_only_if_storage_works(
    stack: Stack, number: int, burned: int
) -> None:
    engine = Unreadable(FakeSettings(seconds_per_step=0, media=False))
    engine.number = number
    made, _ = runner(stack, engine)
    job_id = stack.submit()
    made.render_next("fake")
    job = stack.job(job_id)
    assert (job.state, job.attempt, job.burned_attempts) == (JobState.QUEUED, 1, burned)
