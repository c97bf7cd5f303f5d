"""A real stack for fault tests: embedded Redis, reaper and workers as processes, short times, fake engine."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import soundfile
from PIL import Image

from contract.entries import Canceled, JournalEntry, Started, Submitted
from contract.job import InputFiles, JobState, StoredFile, new_job_id, utcnow
from contract.params import GenerationParams
from contract.settings import Settings, as_environment
from contract.state import Job
from contract.video import CLIP_FRAMES, FPS
from jobs.artifacts import ArtifactStore, FolderStore
from jobs.journal import Journal, Outdated, file_key
from jobs.queue import JobQueue
from jobs.redis_server import RedisServer
from jobs.storage import open_store
from workers.engines.fake import FakeSettings, write_fake_checkpoint

Value = TypeVar("Value")

FAST = {
    "lease_ttl_s": 1.0,
    "heartbeat_s": 0.2,
    "reaper_interval_s": 0.1,
    "stall_timeout_s": 20.0,
    "stop_grace_s": 5.0,
}
"""Settings scaled down by about six, so that a fault and its repair fit into a second or two."""


def eventually(check: Callable[[], Value], timeout_s: float = 20.0, what: str = "the condition") -> Value:
    """Poll until `check` returns something true, and return that."""
    deadline = time.monotonic() + timeout_s
    while not (value := check()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true in {timeout_s:g} s")
        time.sleep(0.02)
    return value


@dataclass
class Stack:
    """Everything but the API. Processes are started by the test, so that it can choose whom to kill."""

    folder: Path
    settings: Settings
    redis: RedisServer
    checkpoint_folder: Path
    checkpoint: str = "fake"
    side: int = 64
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @classmethod
    def create(cls, folder: Path, fake: FakeSettings, **settings: object) -> Stack:
        folder.mkdir(parents=True, exist_ok=True)
        stack_settings = Settings(**{"data_dir": folder / "data", **FAST, **settings})  # type: ignore[arg-type]
        redis = RedisServer(folder / "redis")
        redis.start()
        write_fake_checkpoint(folder / "fake", "fake", fake)
        return cls(folder, stack_settings, redis, folder / "fake")

    @property
    def store(self) -> FolderStore:
        """Tests that look at the folder itself do so in the default storage."""
        return cast(FolderStore, self._remote or FolderStore(self.settings.storage_dir))

    @cached_property
    def _remote(self) -> ArtifactStore | None:
        return None if self.settings.storage_url is None else open_store(self.settings)

    @property
    def journal(self) -> Journal:
        return Journal(self.store)

    @property
    def queue(self) -> JobQueue:
        return JobQueue(self.settings, self.redis.url)

    # Processes

    def start_reaper(self) -> subprocess.Popen[bytes]:
        return self._start("workers.reaper")

    def start_worker(
        self, name: str = "w", devices: str = "cpu", disk: Path | None = None
    ) -> subprocess.Popen[bytes]:
        """With `disk`, a worker on a machine of its own, which has this data folder."""
        folder = str(self.checkpoint_folder)
        arguments = ("--checkpoint", folder, "--name", name, "--devices", devices)
        return self._start("workers.supervisor", *arguments, disk=disk)

    def _start(self, module: str, *arguments: str, disk: Path | None = None) -> subprocess.Popen[bytes]:
        settings = self.settings.model_dump() | {"redis_url": self.redis.url}
        environment = {
            **os.environ,
            **as_environment(settings | {"data_dir": disk or self.settings.data_dir}),
            "OMP_NUM_THREADS": "1",
        }
        with (self.folder / "log.txt").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments], env=environment, stdout=log, stderr=log
            )
        self.processes.append(process)
        return process

    def child_of(self, supervisor: subprocess.Popen[bytes]) -> int:
        """Process id of the supervisor's child."""
        return self.ranks_of(supervisor, 1)[0]

    def ranks_of(self, supervisor: subprocess.Popen[bytes], count: int) -> list[int]:
        """Process ids of all ranks of a worker, in order."""
        return eventually(
            lambda: found if len(found := _children(supervisor.pid)) >= count else None,
            what=f"{count} child processes",
        )

    def log(self) -> str:
        path = self.folder / "log.txt"
        return path.read_text(errors="replace") if path.exists() else ""

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        self.redis.stop()

    # Jobs

    def submit(
        self,
        *prompts: str,
        num_clips: int = 2,
        steps: int = 4,
        seed: int = 0,
        owner: str = "alice",
        announce: bool = True,
        **more: object,
    ) -> str:
        """Submit a job the way the API does; returns its id."""
        job_id = new_job_id()
        num_frames = num_clips * CLIP_FRAMES - 20
        folder = self.store.scratch() / f"incoming-{job_id}"
        (folder / "inputs").mkdir(parents=True)
        Image.new("RGB", (64, 64), "white").save(folder / "inputs/person.png")
        soundfile.write(folder / "inputs/speech.wav", np.zeros(num_frames * 16000 // FPS, np.float32), 16000)
        submitted = Submitted(
            at=utcnow(),
            owner=owner,
            checkpoint=self.checkpoint,
            trained=False,
            params=GenerationParams(
                prompts=prompts or ("a person speaks",),
                negative_prompt="",
                width=self.side,
                height=self.side,
                num_inference_steps=steps,
                guidance_scale=1.0,
                flow_shift=7.0,
                product_scale=1.0,
                seed=seed,
                num_clips=num_clips,
                num_frames=num_frames,
            ),
            inputs=InputFiles(
                person_image=_stored(folder, "inputs/person.png", "image/png"),
                audio=_stored(folder, "inputs/speech.wav", "audio/wav"),
            ),
            retention_s=3600,
            cost=float(num_clips * steps),
        ).model_copy(update=more)
        job = self.journal.submit(job_id, folder, submitted)
        if announce:
            self.queue.announce(job)
        return job_id

    def job(self, job_id: str) -> Job:
        return self.journal.read(job_id)

    def entries(self, job_id: str) -> list[JournalEntry]:
        """The whole journal."""
        return list(self.journal.entries(job_id))

    def attempts(self, job_id: str) -> int:
        return sum(isinstance(entry, Started) for entry in self.entries(job_id))

    def cancel(self, job_id: str) -> Job:
        while True:
            try:
                return self.journal.append(self.job(job_id), Canceled(at=utcnow(), by="alice"))
            except Outdated:
                continue

    def wait(self, job_id: str, state: JobState = JobState.SUCCEEDED, timeout_s: float = 30.0) -> Job:
        """Wait for a job to reach `state`; fails at once if it ends otherwise."""

        def reached() -> Job | None:
            job = self.job(job_id)
            if job.state is not state and job.state.is_terminal:
                raise AssertionError(f"the job {job.state}: {job.error}\n{self.log()[-3000:]}")
            return job if job.state is state else None

        return eventually(reached, timeout_s, f"{state} of {job_id}\n{self.log()[-3000:]}")

    def wait_clips(self, job_id: str, count: int, timeout_s: float = 30.0) -> Job:
        return eventually(
            lambda: job if len((job := self.job(job_id)).clips) >= count else None,
            timeout_s,
            f"{count} clips of {job_id}",
        )

    def path(self, job_id: str, file: StoredFile) -> Path:
        return self.store.local_path(file_key(job_id, file))

    def content(self, job_id: str, file: StoredFile | None) -> bytes:
        """A published file, checked against the hash that the journal promises."""
        assert file is not None
        data = self.path(job_id, file).read_bytes()
        assert hashlib.sha256(data).hexdigest() == file.sha256
        assert len(data) == file.size
        return data


def _stored(folder: Path, name: str, media_type: str) -> StoredFile:
    data = (folder / name).read_bytes()
    return StoredFile(
        name=name, sha256=hashlib.sha256(data).hexdigest(), size=len(data), media_type=media_type
    )


def _children(pid: int) -> list[int]:
    """In the order in which they were started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def process_state(pid: int) -> str | None:
    """The kernel's letter for a process ("R", "S", "T", "Z"), None if it is gone."""
    try:
        return re.sub(r".*\) ", "", Path(f"/proc/{pid}/stat").read_text()).split()[0]
    except FileNotFoundError:
        return None
