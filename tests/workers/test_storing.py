"""A finished clip is encoded and stored while the next one is rendered."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from contract.entries import Interrupted
from contract.job import JobState, OnProgress, Stage
from contract.worker import WorkerInfo
from tests.faults.stack import Stack
from workers.attempt import Runner
from workers.engines.engine import ClipFiles, RenderedClip, RenderRequest
from workers.engines.fake import FakeClip, FakeEngine, FakeSettings
from workers.messages import Message, Progressed
from workers.provenance import Provenance

pytestmark = pytest.mark.slow

PATIENCE_S = 60


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    stack = Stack.create(tmp_path, FakeSettings(media=False), lease_ttl_s=600)
    stack.queue.beat(WorkerInfo(name="w", checkpoint="fake", device="cpu", ready=True))
    yield stack
    stack.close()


@dataclass
class Story:
    """What happened, in order; and what holds the saving of clips up."""

    told: list[str] = field(default_factory=list)
    may_save: threading.Event = field(default_factory=threading.Event)
    saving: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None


@dataclass(frozen=True)
class SlowClip:
    clip: FakeClip
    story: Story

    @property
    def index(self) -> int:
        return self.clip.index

    def save(self, files: ClipFiles) -> None:
        self.story.told.append(f"saving {self.index}")
        self.story.saving.set()
        assert self.story.may_save.wait(PATIENCE_S)
        if self.story.error is not None:
            raise self.story.error
        self.clip.save(files)
        self.story.told.append(f"saved {self.index}")


class SlowToSave(FakeEngine):
    def __init__(self, story: Story) -> None:
        super().__init__(FakeSettings(seconds_per_step=0.02, media=False))
        self.story = story

    def render(self, request: RenderRequest, on_progress: OnProgress) -> Iterator[RenderedClip]:  # type: ignore[override]
        def tell(stage: Stage, clip: int, step: int) -> None:
            on_progress(stage, clip, step)
            if stage is Stage.DENOISING:
                self.story.told.append(f"step {clip}.{step}")

        for clip in super().render(request, tell):
            yield SlowClip(clip, self.story)

    def release(self) -> None:
        self.story.told.append("released")


def runner(stack: Stack, story: Story) -> tuple[Runner, list[Message]]:
    told: list[Message] = []
    made = Runner(
        worker="w",
        journal=stack.journal,
        store=stack.store,
        queue=stack.queue,
        settings=stack.settings,
        engine=SlowToSave(story),
        tell=told.append,
        stopping=threading.Event(),
        provenance=Provenance(stack.store, stack.settings),
    )
    return made, told


def when(runner: Runner, place: tuple[Stage, int, int], act: Callable[[], None]) -> None:
    """Call `act` as soon as the runner reports that place."""
    before = runner.tell
    done = threading.Event()

    def tell(message: Message) -> None:
        before(message)
        if isinstance(message, Progressed) and not done.is_set():
            progress = message.progress
            if (progress.stage, progress.clip, progress.step) == place:
                done.set()
                act()

    runner.tell = tell


def kinds(stack: Stack, job_id: str) -> list[str]:
    return [entry.type for entry in stack.entries(job_id)]


def test_the_next_clip_is_rendered_while_one_is_stored_and_no_more_than_one_waits(stack: Stack) -> None:
    story = Story()
    made, _ = runner(stack, story)
    # Clip 1 is rendered to its end before the saving of clip 0 is allowed to go on.
    when(made, (Stage.DECODING, 1, 2), story.may_save.set)
    job_id = stack.submit(num_clips=3, steps=2)
    made.render_next("fake")
    assert stack.job(job_id).state is JobState.SUCCEEDED
    assert story.told.index("step 1.2") < story.told.index("saved 0") < story.told.index("step 2.1")
    assert kinds(stack, job_id) == ["submitted", "started", *["clip_finished"] * 3, "succeeded"]
    assert [clip.clip for clip in stack.job(job_id).clips] == [0, 1, 2]


def test_a_clip_that_cannot_be_stored_ends_the_render_at_its_next_step(stack: Stack) -> None:
    story = Story(error=RuntimeError("the encoder is broken"))
    made, _ = runner(stack, story)
    made.settings = stack.settings.model_copy(update={"max_attempts": 1})

    when(made, (Stage.DENOISING, 1, 1), story.may_save.set)
    job_id = stack.submit(num_clips=4, steps=100)
    made.render_next("fake")
    job = stack.job(job_id)
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert "the encoder is broken" in job.error.message
    assert not job.clips
    assert "step 1.100" not in story.told
    assert story.told[-1] == "released"


def test_a_clip_being_stored_when_its_job_is_canceled_leaves_no_trace_behind_the_cancel(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    story = Story()
    made, _ = runner(stack, story)
    job_id = stack.submit(num_clips=3, steps=2)

    def cancel() -> None:
        assert story.saving.wait(PATIENCE_S)
        stack.cancel(job_id)
        story.may_save.set()

    when(made, (Stage.DENOISING, 1, 1), cancel)
    charged: list[float] = []
    monkeypatch.setattr(
        "workers.attempt.note_usage", lambda store, usage, *_: charged.append(usage.gpu_seconds)
    )
    began = time.monotonic()
    made.render_next("fake")
    # The clip that was rendered but not kept is charged with the one broken off: both were made.
    assert 3 * made.engine.settings.seconds_per_step <= charged[0] <= time.monotonic() - began
    assert kinds(stack, job_id) == ["submitted", "started", "canceled"]
    assert "step 1.2" not in story.told
    assert story.told[-2:] == ["saved 0", "released"]  # nothing is freed under the thread's hands
    assert not list(stack.store.scratch().iterdir())


def test_a_worker_told_to_stop_first_stores_the_clip_in_hand_and_the_next_attempt_goes_on_behind_it(
    stack: Stack,
) -> None:
    story = Story()
    made, _ = runner(stack, story)
    job_id = stack.submit(num_clips=3, steps=2)

    def stop() -> None:
        assert story.saving.wait(PATIENCE_S)
        made.stopping.set()
        threading.Timer(0.2, story.may_save.set).start()

    when(made, (Stage.DENOISING, 1, 1), stop)
    made.render_next("fake")
    assert kinds(stack, job_id) == ["submitted", "started", "clip_finished", "interrupted"]
    interrupted = stack.entries(job_id)[-1]
    assert isinstance(interrupted, Interrupted)
    assert (interrupted.reason, interrupted.burns_attempt) == ("shutdown", False)

    again, _ = runner(stack, story)
    again.render_next("fake")
    job = stack.job(job_id)
    assert (job.state, [clip.attempt for clip in job.clips]) == (JobState.SUCCEEDED, [1, 2, 2])
    unbroken = stack.submit(num_clips=3, steps=2)
    again.render_next("fake")
    assert stack.content(job_id, job.video) == stack.content(unbroken, stack.job(unbroken).video)


def test_a_wait_for_the_clip_before_keeps_telling_that_the_attempt_lives(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.one_behind.WAIT_S", 0.01)
    story = Story()
    made, told = runner(stack, story)
    told_before: list[int] = []

    def count() -> None:
        told_before.append(len(told))
        threading.Timer(0.5, story.may_save.set).start()

    when(made, (Stage.DECODING, 1, 2), count)
    job_id = stack.submit(num_clips=2, steps=2)
    made.render_next("fake")
    assert stack.job(job_id).state is JobState.SUCCEEDED
    waiting = [message for message in told[told_before[0] :] if isinstance(message, Progressed)]
    assert len(waiting) > 3
    assert {message.progress.clip for message in waiting[:3]} == {1}
