"""The verdict of `cointeract chaos`: checks every promise against the journals and the served bytes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from chaos.client import Answer, Client, NoAnswer
from chaos.observed import Observed, percentile, rounded
from chaos.receivers import Receivers
from chaos.report import Report
from chaos.stack import POWER_CUT, InjectedFault, LiveStack
from contract.entries import Canceled, Failed, Interrupted, JournalEntry, Started, Succeeded
from contract.state import Job
from jobs.identity import pid_of
from jobs.journal import JobNotFound
from workers.engines.fake import synthetic_video

log = logging.getLogger(__name__)

RETRY_S = 0.2
SLACK_S = 1.0
"""A fault may seem to precede, by this much, the start of the attempt that it ended."""


@dataclass
class Judge:
    """Checks everything once all jobs have ended."""

    stack: LiveStack
    client: Client
    seen: Observed
    faults: Sequence[InjectedFault]
    receivers: Receivers | None = None
    knows_all_jobs: bool = True
    """Whether some client must know every stored job."""

    async def judge(self, report: Report) -> None:
        seen = self.seen
        report.jobs = len(seen.accepted)
        ids = set(seen.accepted.values())
        report.duplicated = len(seen.accepted) - len(ids)
        restarts: list[float] = []
        interruptions: Counter[str] = Counter()
        for job_id in ids:
            try:
                job = self.stack.journal.read(job_id)
            except JobNotFound:
                report.lost += 1
                continue
            entries = list(self.stack.journal.entries(job_id))
            self._judge_job(report, job, entries)
            interruptions.update(entry.reason for entry in entries if isinstance(entry, Interrupted))
            restarts += self._restart_times(entries, job_id)
            report.unexplained += self._unexplained(entries)
            if job.video is not None:
                await self._fetch_until_served(job_id)
        if self.knows_all_jobs:
            # A job that no client knows comes from a second submit with the same key.
            report.duplicated += len(set(self.stack.store.list_names("jobs")) - ids)
        report.partial, report.flipped = len(seen.partial), len(seen.flipped)
        report.refused = len(seen.refused)
        for refusal in seen.refused[:10]:
            log.error("refused: %s", refusal)
        report.faults = dict(Counter(fault.kind for fault in self.faults))
        report.kills = sum(fault.kind.startswith("kill") for fault in self.faults)
        report.interruptions = dict(interruptions)
        report.restarts = len(restarts)
        report.restart_p50_s, report.restart_p99_s = (rounded(percentile(restarts, q)) for q in (0.5, 0.99))
        calm = [1000 * seconds for seconds in seen.calm_submits]
        report.submit_p50_ms, report.submit_p99_ms = (rounded(percentile(calm, q)) for q in (0.5, 0.99))
        report.submit_under_faults_p99_ms = rounded(percentile([1000 * s for s in seen.submits], 0.99))
        report.status_p99_ms = rounded(percentile([1000 * s for s in seen.calm_statuses], 0.99))
        report.status_under_faults_p99_ms = rounded(percentile([1000 * s for s in seen.statuses], 0.99))
        report.cancel_p99_s = rounded(percentile(seen.calm_cancels, 0.99))
        report.cancel_under_faults_p99_s = rounded(percentile(seen.cancels, 0.99))
        if self.receivers is not None:
            self._judge_webhooks(report, self.receivers)

    def _judge_job(self, report: Report, job: Job, entries: list[JournalEntry]) -> None:
        ends = sum(isinstance(entry, Succeeded | Failed | Canceled) for entry in entries)
        report.stuck += ends == 0
        report.duplicated += ends > 1
        report.succeeded += job.video is not None
        report.failed += job.error is not None
        report.canceled += isinstance(entries[-1], Canceled)
        report.resumed_clips += sum(clip.attempt < job.attempt for clip in job.clips)
        if self.seen.final.get(job.id, job.state) != job.state:
            self.seen.flipped.add(job.id)
        if job.id in self.seen.canceled and not isinstance(entries[-1], Canceled):
            self.seen.flipped.add(job.id)
        if ends == 0 or job.error is not None:
            log.error("job %s: %s %s", job.id, job.state, job.error)

    def _unexplained(self, entries: list[JournalEntry]) -> int:
        """Attempts that counted against the job although no injected fault had ended them."""
        found = 0
        worker, claimed_at = "", 0.0
        for entry in entries:
            at = entry.at.timestamp()
            match entry:
                case Started():
                    worker, claimed_at = entry.worker, at
                case Interrupted(burns_attempt=True) | Failed():
                    found += not any(
                        claimed_at - SLACK_S <= fault.at <= at
                        and (
                            fault.kind == POWER_CUT
                            or (fault.ends_attempts and fault.worker_pid == pid_of(worker))
                        )
                        for fault in self.faults
                    )
        return found

    def _judge_webhooks(self, report: Report, receivers: Receivers) -> None:
        first_fault = min((fault.at for fault in self.faults), default=float("inf"))
        calm: list[float] = []
        stormy: list[float] = []
        for job_id, url in self.seen.webhooks.items():
            job = self.stack.journal.read(job_id)
            if url != receivers.good_url or job.completed_at is None:
                continue
            told_at, ended_at = receivers.ends.get(job_id), job.completed_at.timestamp()
            if told_at is None:
                report.webhooks_lost += 1
                log.error("job %s: nobody told its end", job_id)
            else:
                (calm if told_at < first_fault else stormy).append(max(0.0, told_at - ended_at))
        report.webhooks = len(self.seen.webhooks)
        report.webhooks_repeated = sum(count > 1 for count in receivers.messages.values())
        report.webhook_p99_s = rounded(percentile(calm, 0.99))
        report.webhook_under_faults_p99_s = rounded(percentile(stormy, 0.99))

    def _restart_times(self, entries: list[JournalEntry], job_id: str) -> list[float]:
        """For each attempt that a fault ended, the seconds from the fault to the next attempt's start."""
        times = []
        worker, hurt_at = "", None
        for entry in entries:
            at = entry.at.timestamp()
            match entry:
                case Started():
                    if hurt_at is not None:
                        times.append(at - hurt_at)
                    worker, hurt_at = entry.worker, None
                case Interrupted():
                    hits = [
                        fault.at
                        for fault in self.faults
                        if fault.worker_pid is not None
                        and fault.worker_pid == pid_of(worker)
                        and fault.job_id == job_id
                        and fault.at <= at
                    ]
                    hurt_at = max(hits, default=None)
        return times

    async def _fetch_until_served(self, job_id: str) -> None:
        answer = await self._insist_at_end(f"/v1/jobs/{job_id}/video")
        job = self.stack.journal.read(job_id)
        if answer.status != 200 or answer.body != synthetic_video(job.submitted.params):
            self.seen.partial.add(job_id)

    async def _insist_at_end(self, path: str) -> Answer:
        deadline = time.monotonic() + 30
        while True:
            self.stack.poll()
            try:
                answer = await self.client.get(path)
            except NoAnswer:
                if time.monotonic() > deadline:
                    raise
            else:
                if answer.status not in (429, 503) or time.monotonic() > deadline:
                    return answer
            await asyncio.sleep(RETRY_S)
