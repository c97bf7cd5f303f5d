"""One trace from a POST to the last clip, across processes, and the log of a job in one query."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from contract.job import JobState
from contract.processes import own_process
from contract.settings import as_environment
from deploy.stack import free_port
from tests.faults.stack import Stack, eventually
from tests.otlp_receiver import Collector, Received, collecting
from tests.server.inputs import audio_bytes, form
from workers.engines.fake import FakeSettings

pytestmark = pytest.mark.slow
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture
def stack(tmp_path: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    for name, value in collector.environment.items():
        monkeypatch.setenv(name, value)
    stack = Stack.create(
        tmp_path, FakeSettings(seconds_per_step=0.05), min_free_bytes=0, traces=True, log_json=True,
        port=free_port("127.0.0.1"),
    )  # fmt: skip
    yield stack
    stack.close()


def start_api(stack: Stack) -> httpx.Client:
    settings = stack.settings.model_dump() | {"redis_url": stack.redis.url}
    with (stack.folder / "log.txt").open("ab") as log:
        command = own_process("cli.app", "serve")
        environment = {**os.environ, **as_environment(settings)}
        stack.processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
    client = httpx.Client(base_url=f"http://127.0.0.1:{stack.settings.port}", trust_env=False)

    def answers() -> bool:
        try:
            models = client.get("/v1/models")
        except httpx.TransportError:
            return False
        return models.is_success and bool(models.json()["data"])

    eventually(answers, 60, "the API")
    return client


def post(client: httpx.Client, steps: int = 4, **headers: str) -> str:
    audio = ("speech.wav", audio_bytes(seconds=6.0), "audio/wav")  # two clips
    files = form(audio=audio, num_inference_steps=str(steps), model="fake")
    answer = client.post("/v1/generate", files=files, headers=headers, timeout=60)
    assert answer.status_code == 202, answer.text
    job_id: str = answer.json()["id"]
    return job_id


def attempts(collector: Collector, job_id: str) -> list[Received]:
    return [span for span in collector.named("attempt") if span.about["cointeract.job_id"] == job_id]


def test_one_trace_leads_from_the_post_to_the_last_clip(stack: Stack, collector: Collector) -> None:
    stack.start_worker()
    client = start_api(stack)
    job_id = post(client, traceparent=CALLER)
    stack.wait(job_id)
    (attempt,) = eventually(lambda: attempts(collector, job_id), what="the attempt's span")
    (request,) = eventually(lambda: collector.named("POST /v1/generate"), what="the request's span")

    assert f"00-{request.trace}-{request.parent}-01" == CALLER
    assert {span.trace for span in collector.spans} == {request.trace}
    assert request.about["http.response.status_code"] == 202
    assert attempt.parent == request.id
    assert attempt.about["gen_ai.request.model"] == "fake"
    assert attempt.about["cointeract.outcome"] == "succeeded"
    for name in ("receive", "check", "wait"):
        (span,) = collector.named(name)
        assert span.parent == request.id
    clips = collector.named("clip")
    assert [clip.about["cointeract.clip"] for clip in clips] == [0, 1]
    assert {clip.parent for clip in clips} == {attempt.id}
    for stage in ("encoding", "denoising", "decoding", "store"):
        assert {span.parent for span in collector.named(stage)} == {clip.id for clip in clips}, stage
    assert [span.parent for span in collector.named("muxing")] == [attempt.id]
    services = {span.process["service.name"]: span.process["process.pid"] for span in (request, attempt)}
    assert services.keys() == {"cointeract-api", "cointeract-worker"}
    assert len(set(services.values())) == 2
    assert all(span.seconds >= 0 for span in collector.spans)
    assert not any(span.failed for span in collector.spans)


def test_a_job_keeps_its_trace_when_its_worker_is_killed(stack: Stack, collector: Collector) -> None:
    stack.start_reaper()
    worker = stack.start_worker()
    client = start_api(stack)
    job_id = post(client, steps=40)
    stack.wait_clips(job_id, 1)
    eventually(lambda: collector.named("clip"), what="the first clip's span")
    os.kill(stack.child_of(worker), signal.SIGKILL)
    job = stack.wait(job_id)
    assert job.attempt == 2
    (second,) = eventually(lambda: attempts(collector, job_id), what="the second attempt's span")
    assert second.about["cointeract.attempt"] == 2
    (request,) = collector.named("POST /v1/generate")
    assert {span.trace for span in collector.spans} == {request.trace}
    clips = collector.named("clip")
    assert {clip.about["cointeract.clip"] for clip in clips} == {0, 1}
    assert len({clip.process["process.pid"] for clip in clips}) == 2


def test_the_log_of_a_job_is_one_query(stack: Stack, collector: Collector) -> None:
    """The query of docs/operations.md, over what all processes wrote."""
    stack.start_worker()
    client = start_api(stack)
    job_id, other = post(client), post(client)
    for each in (job_id, other):
        stack.wait(each)
    page = (Path(__file__).parents[2] / "docs/operations.md").read_text(encoding="utf-8")
    (query,) = [line for line in page.splitlines() if "job_id ==" in line]
    jq = query.partition("| jq ")[2]
    assert jq == "-Rrc 'fromjson? | select(.job_id == \"JOB\")'"

    def lines() -> list[dict[str, str]]:
        found = []
        for line in stack.log().splitlines():
            try:
                told = json.loads(line)
            except ValueError:
                continue
            if isinstance(told, dict) and told.get("job_id") == job_id:
                found.append(told)
        return found

    eventually(lambda: any(line["message"] == "succeeded" for line in lines()), what="the last line")
    said = [(line["logger"], line["message"].split(" in ")[0]) for line in lines()]
    expected = [
        ("server.submit.save", "submitted"),
        ("workers.attempt", "attempt started behind clip 0"),
        ("workers.attempt", "clip 0 finished"),
        ("workers.attempt", "clip 1 finished"),
        ("workers.attempt", "succeeded"),
    ]
    assert said == expected


def test_a_collector_that_is_away_costs_no_job(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    worker = stack.start_worker()
    job = stack.wait(stack.submit())
    assert job.state is JobState.SUCCEEDED
    worker.terminate()
    assert worker.wait(15) == 0


def test_no_tracing_is_imported_while_traces_are_off() -> None:
    """redis imports the SDK's metrics by itself, where they are installed."""
    program = (
        "import sys, server.app, workers.supervisor, workers.child\n"
        "from contract.settings import Settings\n"
        "from jobs.traces import open_traces\n"
        "traces = open_traces(Settings(), 'x')\n"
        "with traces.around('a') as span: span.note(b=1)\n"
        "parts = ('opentelemetry.sdk.trace', 'opentelemetry.exporter', 'jobs.open_telemetry')\n"
        "print([name for name in sys.modules if name.startswith(parts)], traces.current())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] None"


def test_traces_without_their_packages_are_refused_with_what_to_install() -> None:
    program = (
        "import sys\n"
        "sys.modules['opentelemetry.sdk'] = None\n"
        "from contract.settings import Settings\n"
        "from jobs.traces import TracesNotInstalledError, open_traces\n"
        "try: open_traces(Settings(traces=True), 'x')\n"
        "except TracesNotInstalledError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "pip install 'cointeract-server[traces]'" in done.stdout
