"""What many finished jobs cost: the API's start, its later looks, a list, the reaper's start, an expiry.

    python -m benchmarks.retention 10000 --folder /tmp/many

Each job has a journal of five entries and its files, of a byte each: sizes on disk make no difference here.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from contract.entries import ClipFinished, JournalEntry, Started, Submitted, Succeeded
from contract.job import InputFiles, StoredFile, new_job_id, utcnow
from contract.params import GenerationParams
from jobs.artifacts import FolderStore
from jobs.journal import Journal
from server.index import JobFilter, JobIndex
from server.index_copy import IndexCopy
from workers.expiry import MARKER_RECORDS

OWNERS: Final = 100
EXPIRED: Final = 200
"""Jobs that are removed to measure that."""


def _stored(name: str) -> StoredFile:
    return StoredFile(name=name, sha256="0" * 64, size=1, media_type="x/x")


def _entries(owner: str) -> list[JournalEntry]:
    params = GenerationParams(
        prompts=("She holds the cup and speaks.",),
        negative_prompt="",
        width=832,
        height=480,
        num_inference_steps=40,
        guidance_scale=7.0,
        flow_shift=7.0,
        product_scale=1.0,
        seed=0,
        num_clips=2,
        num_frames=160,
    )
    submitted = Submitted(
        at=utcnow(),
        owner=owner,
        checkpoint="official",
        trained=True,
        params=params,
        inputs=InputFiles(person_image=_stored("person.png"), audio=_stored("speech.wav")),
        retention_s=10**9,
        cost=params.cost(),
    )
    clips = [
        ClipFinished(
            at=utcnow(), attempt=1, clip=n, video=_stored(f"clip-{n}.mp4"), motion=None, gpu_seconds=60.0
        )
        for n in range(2)
    ]
    end = Succeeded(at=utcnow(), attempt=1, video=_stored("video-1.mp4"), duration_s=9.0, gpu_seconds=1.0)
    return [submitted, Started(at=utcnow(), attempt=1, worker="w"), *clips, end]


def fill(root: Path, jobs: int) -> None:
    """Write the jobs as workers leave them, without waiting for the disk."""
    texts = [[entry.model_dump_json() for entry in _entries(f"owner{n:07d}")] for n in range(OWNERS)]
    for number in range(jobs):
        folder = root / "jobs" / new_job_id()
        (folder / "journal").mkdir(parents=True)
        for sequence, text in enumerate(texts[number % OWNERS]):
            (folder / "journal" / f"{sequence:06d}.json").write_text(text)
        for name in ("person.png", "speech.wav", "clip-0.mp4", "clip-1.mp4", "video-1.mp4"):
            (folder / name).write_bytes(b"x")
        (root / MARKER_RECORDS.folder / f"{10**10 + number:012d}-{folder.name}").write_bytes(b"")


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return round(time.perf_counter() - started, 4)


def measure(root: Path) -> dict[str, float]:
    """Seconds of each, unless the name says otherwise."""
    store = FolderStore(root)
    journal = Journal(store)
    before = _resident_mb()
    index = JobIndex(store, 1000, IndexCopy(root))
    figures = {"first start of an API": _seconds(index.refresh)}
    figures["memory of its index, MB"] = round(_resident_mb() - before, 1)
    figures["each later look"] = _seconds(index.refresh)
    figures["each later start"] = _seconds(JobIndex(store, 1000, IndexCopy(root)).refresh)
    figures["a page of 20, of one key"] = _seconds(
        lambda: index.page(JobFilter(owner="owner0000007"), None, 20)
    )
    figures["the reaper's list of ends"] = _seconds(lambda: store.list_names(MARKER_RECORDS.folder))
    figures["a list of all jobs"] = _seconds(journal.ids)
    some = journal.ids()[:EXPIRED]
    removed = _seconds(lambda: [journal.remove(journal.read(job_id)) for job_id in some])
    figures["removing one job"] = round(removed / max(1, len(some)), 5)
    return figures


def _resident_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("jobs", type=int)
    parser.add_argument("--folder", type=Path, required=True, help="A new folder; it is removed at the end.")
    options = parser.parse_args()
    if options.folder.exists():
        parser.error(f"{options.folder} exists: name a new folder")
    try:
        FolderStore(options.folder)
        fill(options.folder, options.jobs)
        sys.stdout.write(json.dumps({"jobs": options.jobs, **measure(options.folder)}) + "\n")
    finally:
        shutil.rmtree(options.folder, ignore_errors=True)


if __name__ == "__main__":
    main()
