"""The reaper: makes Redis agree with the journals, ends lost attempts, and removes what is too old.

It may be killed at any moment, and several may run at once: the journal decides everything it does, or the
thing can be done twice. A round takes time in proportion to the live jobs, not to all stored ones. A job that
cannot be read holds up no other job.
"""

from __future__ import annotations

import argparse
import logging
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import FrameType

from redis.exceptions import RedisError, ResponseError
from rq.registry import clean_registries
from rq.serializers import JSONSerializer
from rq.worker import SimpleWorker
from rq.worker_registration import clean_worker_registry

from contract.job import JobState, Stage, utcnow
from contract.settings import Settings
from contract.state import Job
from jobs.artifacts import ArtifactStore
from jobs.clock import Clock
from jobs.identity import REAPER, is_surely_dead, lives_here, process_name
from jobs.journal import JobNotFound, Journal, UnreadableJob
from jobs.logs import configure_logging
from jobs.queue import JobQueue
from jobs.storage import StoreRefusedError, open_store
from jobs.tickets import Ticket
from workers.deadlines import cancel_late
from workers.expiry import Expiry
from workers.lost_attempts import end_attempt
from workers.metrics import (
    LAST_ROUND,
    LIVE_JOBS,
    LOST_ATTEMPTS,
    OF_REAPER,
    PASSED_OVER,
    REPAIRS,
    serve_metrics,
)

log = logging.getLogger(__name__)

PLAN_SHARE = 0.1
"""Largest share of the time that planning a long queue may take."""
SCAN_SHARE = 0.05
"""Largest share of the time that listing the stored jobs may take, however many there are."""

EXPIRY_INTERVAL_S = 30.0


@dataclass
class Reaper:
    """`round` is one pass. Everything that it remembers can be read from storage again."""

    settings: Settings
    store: ArtifactStore
    queue: JobQueue
    live: dict[str, Job] = field(default_factory=dict)
    """Jobs not known to be finished, as last read."""
    _unheard: dict[tuple[str, int], float] = field(default_factory=dict)
    """Attempts that no live worker names, and since when."""
    _stages: dict[tuple[str, int], Stage] = field(default_factory=dict)
    """The stage of each attempt when its worker was last heard."""
    _epoch: str = ""
    _last_round: float = 0.0
    _next_scan: float = 0.0
    _next_plan: dict[str, float] = field(default_factory=dict)
    _next_expiry: float = 0.0
    _next_sign: float = 0.0
    _trouble: str = ""
    """The last error of storage, so that it is logged once."""

    def __post_init__(self) -> None:
        self.expiry = Expiry(self.store, Clock(self.store, self.queue.redis))

    @property
    def journal(self) -> Journal:
        return Journal(self.store)

    @property
    def grace_s(self) -> float:
        """How long an attempt must be silent. A live supervisor beats twice in this time."""
        return 2 * self.settings.heartbeat_s

    def say_alive(self) -> None:
        """Tell whoever watches this process that it is not stuck. Called often, it tells so now and then."""
        now = time.monotonic()
        if now >= self._next_sign:
            self._next_sign = now + self.settings.heartbeat_s
            with suppress(RedisError):
                self.queue.say_alive(process_name(REAPER), 2 * self.settings.lease_ttl_s)

    def round(self) -> None:
        """Do what storage and Redis allow now. The rest waits for a later round."""
        self.say_alive()
        trouble = ""
        for step in (
            self._find_new_jobs,
            self._read_live_jobs,
            self._cancel_late_jobs,
            self._end_dead_attempts,
            self._look_at_redis,
            self._remove_expired,
        ):
            try:
                step()
            except OSError as error:
                trouble = str(error)
            except Exception:  # whatever it is, the other steps must be taken
                log.exception("a part of the round failed")
        if trouble and not self._trouble:
            log.error("storage fails: %s", trouble)
        elif self._trouble and not trouble:
            log.info("storage works again")
        self._trouble = trouble
        for kind, count in self.store.passed_over.counts().items():
            PASSED_OVER.labels(kind).set(count)
        LAST_ROUND.set_to_current_time()

    def _look_at_redis(self) -> None:
        try:
            self._drop_wrong_types()
            self._retire_dead_workers()
            self._repair_queue()
            self._end_silent_attempts()
        except RedisError as error:
            self._unheard.clear()  # nobody could be heard meanwhile
            log.warning("Redis is away: %s", error)

    def _drop_wrong_types(self) -> None:
        """Drop what has the wrong type in Redis, because nobody could go on with it. It is made again."""
        checkpoints = {job.submitted.checkpoint for job in self.live.values()}
        with suppress(ResponseError):  # the set of checkpoints is itself something else
            checkpoints |= set(self.queue.checkpoints())
        REPAIRS.labels("type").inc(self.queue.drop_wrong_types(checkpoints))

    def _find_new_jobs(self) -> None:
        """Find jobs whose announcement was lost, and all jobs at the start."""
        started = time.monotonic()
        if started < self._next_scan:
            return
        done = {job_id for _, job_id in self.expiry.markers()}
        for job_id in self.journal.ids():
            known = job_id in self.live or job_id in done
            if not known and not self.store.passed_over.was_just_noted("job", job_id):
                self._read(job_id, None)
        now = time.monotonic()
        self._next_scan = now + max(self.settings.reaper_interval_s, (now - started) / SCAN_SHARE)

    def _read_live_jobs(self) -> None:
        trouble: OSError | None = None
        for job_id, known in list(self.live.items()):
            job = self._read(job_id, known)
            if job is not None and job.state.is_terminal:
                try:
                    self.expiry.mark(job)
                except OSError as error:
                    trouble = error
                else:
                    del self.live[job_id]
        states = [job.state for job in self.live.values()]
        for state in (JobState.QUEUED, JobState.PROCESSING):
            LIVE_JOBS.labels(state).set(states.count(state))
        if trouble is not None:
            raise trouble

    def _cancel_late_jobs(self) -> None:
        """By this machine's clock, which no other needs to confirm: a cancel deletes nothing."""
        for job in cancel_late(self.journal, self.queue, list(self.live.values()), utcnow()):
            self.live[job.id] = job

    def _read(self, job_id: str, known: Job | None) -> Job | None:
        """The job as it is now; None if it is gone, or cannot be understood and so is left alone."""
        self.say_alive()
        try:
            self.live[job_id] = self.journal.read(job_id, known=known)
            self.store.passed_over.forget("job", job_id)
        except JobNotFound:
            self.live.pop(job_id, None)
            self.store.passed_over.forget("job", job_id)
        except UnreadableJob as error:
            self.live.pop(job_id, None)
            self.store.passed_over.note("job", job_id, error)
        except OSError as error:  # an error of this job alone: its last known state still counts
            self.store.passed_over.note("job", job_id, error)
        return self.live.get(job_id)

    def _repair_queue(self) -> None:
        """Make the waiting set hold exactly the queued jobs, with a ticket for each."""
        queued: dict[str, dict[str, Job]] = defaultdict(dict)
        for job in self.live.values():
            if job.state is JobState.QUEUED:
                queued[job.submitted.checkpoint][job.id] = job
        for checkpoint in set(self.queue.checkpoints()) | set(queued):
            waiting = self.queue.waiting_ids(checkpoint)
            if missing := [job for job in queued[checkpoint].values() if job.id not in waiting]:
                self.queue.add_waiting([job for job in missing if self._is_queued(job.id)])
                REPAIRS.labels("waiting").inc(len(missing))
            for job_id in waiting - queued[checkpoint].keys():
                if not self._is_queued(job_id):
                    self.queue.withdraw(job_id, checkpoint)
                    REPAIRS.labels("withdrawn").inc()
            if issued := self.queue.top_up_tickets(checkpoint):
                REPAIRS.labels("ticket").inc(issued)
            self._plan(checkpoint)
            try:
                self._run_rq_maintenance(checkpoint)
            except RedisError:
                raise
            except Exception:  # RQ trusts what it finds in Redis; our repairs must not depend on that
                log.exception("RQ's maintenance of %s failed", checkpoint)

    def _plan(self, checkpoint: str) -> None:
        """Work out the order of a long queue now and then, so that nobody else must."""
        started = time.monotonic()
        if started >= self._next_plan.get(checkpoint, 0.0) and self.queue.plan(checkpoint):
            now = time.monotonic()
            pause = max(self.settings.reaper_interval_s, (now - started) / PLAN_SHARE)
            self._next_plan[checkpoint] = now + pause

    def _is_queued(self, job_id: str) -> bool:
        """Ask the journal at the last moment: what this round has read may be out of date."""
        try:
            return self.journal.read(job_id).state is JobState.QUEUED
        except (JobNotFound, ValueError):
            return False
        except OSError:  # unknown, so it stays as it is
            return True

    def _run_rq_maintenance(self, checkpoint: str) -> None:
        """Do what RQ's workers would do every ten minutes between two jobs."""
        tickets = self.queue.tickets(checkpoint)
        clean_registries(tickets)
        clean_worker_registry(tickets)
        if tickets.intermediate_queue.get_job_ids():
            worker = SimpleWorker(
                [tickets],
                connection=self.queue.redis,
                job_class=Ticket,
                serializer=JSONSerializer,
                prepare_for_work=False,
            )
            tickets.intermediate_queue.cleanup(worker, tickets)

    def _end_dead_attempts(self) -> None:
        """Queue jobs again whose worker ran on this machine and has ended. That is certain without Redis."""
        for key, job in self._running().items():
            if job.worker is not None and is_surely_dead(job.worker):
                self._end(key, job)

    def _retire_dead_workers(self) -> None:
        """Take killed workers off the list at once, before their leases end."""
        for worker in self.queue.workers():
            if is_surely_dead(worker.name):
                self.queue.retire(worker.name)

    def _end_silent_attempts(self) -> None:
        """Queue jobs again whose worker has been silent for its lease and then for our grace.

        The grace protects live workers where the lease alone would not. After Redis was away or was wiped, or
        after this process itself was stopped for a while, all leases look expired until the workers beat
        again.
        """
        now = time.monotonic()
        epoch = self.queue.epoch()
        if (
            epoch != self._epoch
            or now - self._last_round > self.grace_s / 2 + self.settings.reaper_interval_s
        ):
            self._unheard.clear()
        self._epoch, self._last_round = epoch, now
        heard = {
            (running.job_id, running.attempt): running.progress.stage
            for worker in self.queue.workers()
            if (running := worker.running) is not None
        }
        attempts = self._running()
        self._stages = {key: heard.get(key) or self._stages.get(key, Stage.LOADING) for key in attempts}
        self._unheard = {key: self._unheard.get(key, now) for key in attempts if key not in heard}
        for key, since in list(self._unheard.items()):
            if now - since >= self.grace_s:
                self._end(key, attempts[key])

    def _running(self) -> dict[tuple[str, int], Job]:
        """Running attempts by job and number."""
        return {(job.id, job.attempt): job for job in self.live.values() if job.state is JobState.PROCESSING}

    def _end(self, key: tuple[str, int], job: Job) -> None:
        # A process that still exists was stopped or starved, which is not the job's fault.
        stopped = job.worker is not None and lives_here(job.worker)
        try:
            entry = end_attempt(
                self.journal,
                self.queue,
                job.id,
                job.attempt,
                reason="worker_lost",
                message=f"the worker {job.worker} {'lives but is silent' if stopped else 'vanished'}",
                burns_attempt=not stopped,
                max_attempts=self.settings.max_attempts,
                stage=self._stages.get(key, Stage.LOADING),
            )
        except (UnreadableJob, OSError) as error:
            self.store.passed_over.note("job", job.id, error)
        else:
            LOST_ATTEMPTS.inc(entry is not None)

    def _remove_expired(self) -> None:
        if time.monotonic() < self._next_expiry:
            return
        self._next_expiry = time.monotonic() + min(EXPIRY_INTERVAL_S, 10 * self.settings.reaper_interval_s)
        self.expiry.remove_due(self.say_alive)


def run(settings: Settings, redis_url: str, stopping: threading.Event) -> None:
    """Reap until `stopping` is set. It survives while Redis or storage is away."""
    if settings.reaper_metrics_port is not None:
        serve_metrics(settings.reaper_metrics_port, OF_REAPER)
    reaper = Reaper(settings, open_store(settings), JobQueue(settings, redis_url))
    while not stopping.is_set():
        reaper.round()
        stopping.wait(settings.reaper_interval_s)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m workers.reaper", description="The reaper.")
    parser.parse_args(arguments)
    settings = Settings()
    if settings.redis_url is None:
        parser.error("set COINTERACT_REDIS_URL")
    configure_logging(settings)
    stopping = threading.Event()

    def stop(signum: int, frame: FrameType | None) -> None:
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    try:
        run(settings, settings.redis_url, stopping)
    except StoreRefusedError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
