"""How long the API takes to list jobs and to tell one job's state: `python -m benchmarks.api_reads [JOBS]`.

One API process with its own Redis; a store with so many finished and so many waiting jobs of two clips each.
A client on a kept connection asks one request at a time. CPU is what the API process used per request.
"""

from __future__ import annotations

import http.client
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from contract.card import CheckpointCard, CheckpointDefaults
from contract.entries import ClipFinished, Started, Submitted, Succeeded
from contract.job import InputFiles, StoredFile, new_job_id, utcnow
from contract.params import GenerationParams
from contract.settings import Settings, as_environment
from deploy.stack import free_port
from jobs.artifacts import FolderStore
from jobs.cards import publish_card
from jobs.journal import Journal, job_prefix
from jobs.queue import JobQueue
from jobs.redis_server import RedisServer

REQUESTS = 300
CLIPS = 2
CARD = CheckpointCard(
    name="toy",
    trained=False,
    sizes=("64x64",),
    min_side=64,
    max_pixels=64 * 64,
    defaults=CheckpointDefaults(
        num_inference_steps=4, guidance_scale=1.0, flow_shift=7.0, negative_prompt=""
    ),
    note="",
)
PARAMS = GenerationParams(
    prompts=("She lifts the teapot.", "She turns it to the camera."),
    negative_prompt="blurry",
    width=64,
    height=64,
    num_inference_steps=4,
    guidance_scale=1.0,
    flow_shift=7.0,
    product_scale=1.0,
    seed=7,
    num_clips=CLIPS,
    num_frames=CLIPS * 80,
)


def stored(name: str, media_type: str) -> StoredFile:
    return StoredFile(name=name, sha256="0" * 64, size=1, media_type=media_type)


def add_job(store: FolderStore, queue: JobQueue, finished: bool) -> str:
    """Store a job as the API and a worker do. Returns its id."""
    journal, job_id, now = Journal(store), new_job_id(), utcnow()
    folder = store.scratch() / job_id
    folder.mkdir()
    inputs = InputFiles(
        person_image=stored("inputs/person.png", "image/png"), audio=stored("inputs/speech.wav", "audio/wav")
    )
    submitted = Submitted(
        at=now, owner="local", checkpoint=CARD.name, trained=False, params=PARAMS, inputs=inputs,
        metadata={"sku": "A-100"}, retention_s=3600, cost=8.0,
    )  # fmt: skip
    job = journal.submit(job_id, folder, submitted)
    if not finished:
        queue.announce(job)
        return job_id
    job = journal.append(job, Started(at=now, attempt=1, worker="w"))
    for clip in range(CLIPS):
        entry = ClipFinished(
            at=now, attempt=1, clip=clip, video=stored(f"clip-{clip}.mp4", "video/mp4"),
            motion=stored(f"motion-{clip}.bin", "application/octet-stream"),
            fragment=stored(f"fragment-{clip}.m4s", "video/mp4"), gpu_seconds=1.0,
            poster=stored(f"poster-{clip}.jpg", "image/jpeg"),
            stream_header=stored("header.mp4", "video/mp4") if clip == 0 else None,
        )  # fmt: skip
        job = journal.append(job, entry)
    video = stored("video-1.mp4", "video/mp4")
    journal.append(job, Succeeded(at=now, attempt=1, video=video, duration_s=6.4, gpu_seconds=2.0))
    assert (store.root / job_prefix(job_id)).is_dir()
    return job_id


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(name: str, port: int, pid: int, path: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    times, size = [], 0
    for number in range(REQUESTS + 20):
        if number == 20:  # the first ones warm it up
            used = cpu_seconds(pid)
        began = time.perf_counter()
        connection.request("GET", path)
        answer = connection.getresponse()
        size = len(answer.read())
        assert answer.status == 200, (path, answer.status)
        if number >= 20:
            times.append(1000 * (time.perf_counter() - began))
    used = 1000 * (cpu_seconds(pid) - used) / REQUESTS
    p50, p99 = statistics.median(times), statistics.quantiles(times, n=100)[98]
    sys.stdout.write(f"{name}: p50 {p50:.1f} ms, p99 {p99:.1f} ms, CPU {used:.1f} ms, {size / 1e3:.0f} kB\n")


def main(count: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        redis = RedisServer(folder / "redis")
        redis.start()
        settings = Settings(data_dir=folder / "data", redis_url=redis.url, min_free_bytes=0)
        store, queue = FolderStore(settings.storage_dir), JobQueue(settings, redis.url)
        publish_card(store, CARD)
        finished = [add_job(store, queue, True) for _ in range(count)]
        waiting = [add_job(store, queue, False) for _ in range(count)]
        port = free_port("127.0.0.1")
        command = [sys.executable, "-m", "cli.app", "serve", "--port", str(port)]
        environment = {**os.environ, **as_environment(settings.model_dump())}
        api = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        try:
            while True:
                try:
                    http.client.HTTPConnection("127.0.0.1", port, timeout=1).request("GET", "/healthz")
                    break
                except OSError:
                    time.sleep(0.1)
            for label, path in (
                (f"list of {count} finished jobs", f"/v1/jobs?limit={count}&status=succeeded"),
                (f"list of {count} waiting jobs", f"/v1/jobs?limit={count}&status=queued"),
                ("state of a finished job", f"/v1/jobs/{finished[0]}"),
                ("state of a waiting job", f"/v1/jobs/{waiting[0]}"),
            ):
                measure(label, port, api.pid, path)
        finally:
            api.terminate()
            api.wait()
            redis.stop()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
