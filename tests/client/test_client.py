"""The client package against a real service."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cointeract_client import (
    ApiError,
    AsyncClient,
    Client,
    ConnectionFailed,
    Job,
    JobFailed,
    WaitTimeout,
    WebhookInvalid,
    verify_webhook,
)
from standardwebhooks.webhooks import Webhook

from tests.client.breaking_proxy import BreakingProxy
from tests.client.conftest import Service
from tools.async_client import SOURCE, TARGET, async_source

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def ingredients(service: Service, **more: object) -> dict[str, object]:
    return {"person_image": service.person, "audio": service.speech, "prompt": ["One.", "Two."], **more}


def test_a_video_is_made_with_progress_and_saved(service: Service, tmp_path: Path) -> None:
    seen: list[Job] = []
    with Client(service.url) as client:
        job = client.generate(**ingredients(service, seed=7), on_progress=seen.append)  # type: ignore[arg-type]
        saved = client.download(job, tmp_path / "new" / "out.mp4")
        clip = client.download_clip(job, 1, tmp_path / "clip.mp4")
    assert job.status == "succeeded"
    assert (job.seed, job.num_clips) == (7, 2)
    assert saved.read_bytes()[4:8] == clip.read_bytes()[4:8] == b"ftyp"
    assert {state.status for state in seen} >= {"queued", "processing", "succeeded"}
    assert sorted(path.name for path in saved.parent.iterdir()) == ["out.mp4"]


def test_bytes_open_files_and_data_urls_are_the_same_input(service: Service) -> None:
    person = service.person.read_bytes()
    url = "data:image/png;base64," + base64.b64encode(person).decode()
    with Client(service.url) as client, service.person.open("rb") as opened:
        opened.read(10)  # the position of a file that is handed over does not matter
        jobs = [
            client.submit(**ingredients(service, person_image=given, metadata={"kind": "x"}, priority="low"))  # type: ignore[arg-type]
            for given in (person, opened, url)
        ]
        stored = {service.stack.journal.read(job.id).submitted.inputs.person_image.sha256 for job in jobs}
        for job in jobs:
            assert job.metadata == {"kind": "x"}
            client.delete(job)
    assert len(stored) == 1


def test_a_refusal_names_code_field_and_limit(service: Service) -> None:
    with Client(service.url) as client, pytest.raises(ApiError) as refused:
        client.submit(**ingredients(service, size="100x100"))  # type: ignore[arg-type]
    error = refused.value
    assert (error.status, error.code, error.field, error.limit) == (422, "unsupported_size", "size", 16)
    assert error.problem.title
    assert str(error).startswith("size: ")


def test_validate_queues_nothing(service: Service) -> None:
    with Client(service.url) as client:
        before = [job.id for job in client.jobs()]
        found = client.validate(**ingredients(service))  # type: ignore[arg-type]
        assert [job.id for job in client.jobs()] == before
    assert found.duration_s == 4.0
    assert found.params["num_clips"] == 2


def test_pages_of_jobs_are_walked_through(service: Service) -> None:
    with Client(service.url) as client:
        made = [client.submit(**ingredients(service, seed=seed)).id for seed in range(3)]  # type: ignore[arg-type]
        listed = [job.id for job in client.jobs(page_size=1)]
        for job in made:
            client.delete(job)
    assert [job for job in listed if job in made] == made[::-1]


def test_the_manifest_tells_what_made_the_video_and_sending_its_params_again_makes_the_same(
    service: Service, tmp_path: Path
) -> None:
    with Client(service.url) as client:
        first = client.generate(**ingredients(service, seed=11))  # type: ignore[arg-type]
        made = client.manifest(first)
        files = ingredients(service)
        again = client.generate(
            person_image=files["person_image"],  # type: ignore[arg-type]
            audio=files["audio"],  # type: ignore[arg-type]
            params=made["params"],
        )
        repeated = client.manifest(again)
        video = client.download(first, tmp_path / "a.mp4").read_bytes()
    assert made["video"]["sha256"] == hashlib.sha256(video).hexdigest()
    assert (
        made["inputs"]["audio"]["received_sha256"] == hashlib.sha256(service.speech.read_bytes()).hexdigest()
    )
    assert [(clip["clip"], clip["seed"], clip["prompt"]) for clip in made["clips"]] == [
        (0, 11, "One."),
        (1, 12, "Two."),
    ]
    (attempt,) = made["attempts"]
    assert (attempt["device"], attempt["ranks"], attempt["memory_mode"]) == ("cpu", 1, "resident")
    assert attempt["version"]
    sums = (service.stack.checkpoint_folder / "SHA256SUMS").read_bytes()
    assert attempt["checkpoint_sha256"] == hashlib.sha256(sums).hexdigest()
    assert made["weights"][attempt["checkpoint_sha256"]]["cointeract.json"] == sums.decode().split()[0]
    assert made["exact"] is True
    assert repeated["video"]["content_sha256"] == made["video"]["content_sha256"]
    for name in ("params", "inputs", "weights"):
        assert repeated[name] == made[name], name


def test_jobs_are_found_by_what_they_were_submitted_with(service: Service) -> None:
    began = datetime.now()  # without a zone: local time, as people write it
    with Client(service.url) as client:
        labels = ({"order": "7", "kind": "x"}, {"order": "8"})
        first, second = [client.submit(**ingredients(service, metadata=each)).id for each in labels]  # type: ignore[arg-type]
        client.cancel(first)

        def found(**query: Any) -> set[str]:
            return {job.id for job in client.jobs(**query)} & {first, second}

        assert found(metadata={"order": "7"}) == {first}
        assert found(status="canceled") == {first}
        assert found(status=["canceled", "queued", "processing", "succeeded"]) == {first, second}
        assert found(created_after=began) == {first, second}
        assert found(created_before=began) == found(model="no-such") == set()
        for job in (first, second):
            client.delete(job)


def test_waiting_for_a_canceled_job_raises_an_error(service: Service) -> None:
    with Client(service.url) as client:
        job = client.submit(**ingredients(service, num_inference_steps=100))  # type: ignore[arg-type]
        with pytest.raises(WaitTimeout) as late:
            client.wait(job, timeout_s=0.5)
        assert not late.value.job.is_final
        client.cancel(job)
        with pytest.raises(JobFailed, match="was canceled"):
            client.wait(job)


def test_a_submit_whose_answer_is_lost_makes_one_job(service: Service, proxy: BreakingProxy) -> None:
    proxy.cuts = [0, 20]
    with Client(proxy.url) as client, Client(service.url) as direct:
        known = {job.id for job in direct.jobs()}
        job = client.submit(**ingredients(service, seed=99))  # type: ignore[arg-type]
        assert {found.id for found in direct.jobs()} - known == {job.id}
        direct.delete(job)
    assert proxy.connections == 3


def test_broken_event_streams_and_downloads_go_on_where_they_broke(
    service: Service, proxy: BreakingProxy, tmp_path: Path
) -> None:
    with Client(service.url) as direct:
        job = direct.submit(**ingredients(service, seed=5))  # type: ignore[arg-type]
        proxy.cuts = [2500, 4000]
        with Client(proxy.url) as client:
            ids = [event.id for event in client.events(job) if event.id is not None]
        assert ids == [str(number) for number in range(len(ids))]
        assert len(ids) == 5  # submitted, started, two clips, succeeded
        whole = direct.download(job, tmp_path / "whole.mp4")
    proxy.cuts = [3000, 2000]
    with Client(proxy.url) as client:
        pieced = client.download(job, tmp_path / "pieced.mp4")
    assert digest(pieced) == digest(whole)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_server_that_is_away_is_said_so_after_the_retries(tmp_path: Path) -> None:
    with (
        Client("http://127.0.0.1:9", max_retries=1) as client,
        pytest.raises(ConnectionFailed, match="No server"),
    ):
        client.models()


def test_the_async_client_does_the_same(service: Service, tmp_path: Path) -> None:
    async def make() -> tuple[Job, Path]:
        async with AsyncClient(service.url) as client:
            models = await client.models()
            assert [model.id for model in models] == ["fake"]
            job = await client.generate(**ingredients(service, seed=8))  # type: ignore[arg-type]
            assert job.id in [listed.id async for listed in client.jobs(status="succeeded")]
            return job, await client.download(job, tmp_path / "out.mp4")

    job, saved = asyncio.run(make())
    assert job.status == "succeeded"
    assert saved.stat().st_size > 1000


def test_the_async_client_is_written_from_the_blocking_one() -> None:
    command = [sys.executable, "-m", "ruff", "format", "--stdin-filename", str(TARGET)]
    source = async_source(SOURCE.read_text())
    written = subprocess.run(command, input=source, text=True, capture_output=True, check=True, cwd=ROOT)
    assert TARGET.read_text() == written.stdout, "run: make client"


def test_a_file_is_sent_once_and_named_in_submits(service: Service) -> None:
    with Client(service.url) as client:
        person, speech = client.keep(service.person), client.keep(service.speech.read_bytes(), kind="audio")
        assert {file.id for file in client.kept_files()} >= {person.id, speech.id}
        mixed = client.submit(person_image=person.id, audio=service.speech, prompt="One.")
        named = client.submit(person_image=person.id, audio=speech.id, prompt="One.")
        stored = [service.stack.journal.read(job.id).submitted.inputs for job in (mixed, named)]
        assert stored[0].audio.sha256 == stored[1].audio.sha256
        client.forget(person)
        client.forget(speech.id)
        with pytest.raises(ApiError) as refused:
            client.submit(person_image=person.id, audio=service.speech, prompt="One.")
        assert (refused.value.code, refused.value.field) == ("unknown_file", "person_image")
        for job in (mixed, named):
            client.delete(job)


def test_the_deliveries_of_webhooks_can_be_listed(service: Service) -> None:
    asked = {"webhook_url": "https://hooks.invalid/x", "webhook_events": ["job.succeeded"]}
    with Client(service.url) as client:
        job = client.generate(**ingredients(service, **asked))  # type: ignore[arg-type]
        until = time.monotonic() + 30
        while not (known := client.deliveries(job))[0].tries and time.monotonic() < until:
            time.sleep(0.1)
        (told,) = known
        assert (told.event, told.state, told.tries[0].status) == ("job.succeeded", "pending", None)
        assert told.tries[0].error
        assert client.redeliver(job, told.sequence).id == told.id
        with pytest.raises(ApiError) as refused:
            client.webhook_secret()
        assert refused.value.status == 404
        made = client.webhook_secret(renew=True)
        assert client.webhook_secret() == made
        (service.stack.store.root / "webhook-secrets" / "local.json").unlink()


def test_a_webhook_signed_by_the_standard_is_verified_and_a_forged_one_is_not(service: Service) -> None:
    with Client(service.url) as client:
        job = client.submit(**ingredients(service))  # type: ignore[arg-type]
        client.cancel(job)
    secret = "whsec_" + base64.b64encode(b"k" * 24).decode()
    body = f'{{"type": "job.canceled", "timestamp": "2026-01-01T00:00:00Z", "data": {job.model_dump_json()}}}'
    now = int(time.time())
    signature = Webhook(secret).sign("msg_1", datetime.fromtimestamp(now, UTC), body)
    headers = {"Webhook-Id": "msg_1", "Webhook-Timestamp": str(now), "Webhook-Signature": signature}
    event = verify_webhook(body.encode(), headers, secret)
    assert (event.type, event.data.id) == ("job.canceled", job.id)
    forgeries: list[tuple[bytes, dict[str, str]]] = [
        (body.encode() + b" ", headers),
        (body.encode(), {**headers, "Webhook-Timestamp": str(now - 400)}),
        (body.encode(), {**headers, "Webhook-Id": "msg_2"}),
        (body.encode(), {name: value for name, value in headers.items() if name != "Webhook-Signature"}),
    ]
    for forged, forged_headers in forgeries:
        with pytest.raises(WebhookInvalid):
            verify_webhook(forged, forged_headers, secret)


def test_the_package_imports_nothing_but_httpx_and_pydantic() -> None:
    allowed = {"httpx", "pydantic", "cointeract_client"} | set(sys.stdlib_module_names)
    for file in SOURCE.parent.glob("*.py"):
        for name in re.findall(r"^\s*(?:from|import) (\w+)", file.read_text(), re.MULTILINE):
            assert name in allowed, f"{file.name} imports {name}"


def test_jobs_are_made_from_jobs_and_changed(service: Service, tmp_path: Path) -> None:
    with Client(service.url) as client:
        first = client.generate(**ingredients(service, seed=3, metadata={"title": "a", "sku": "1"}))  # type: ignore[arg-type]
        changed = client.change(first, metadata={"title": "b", "sku": None})
        assert changed.metadata == {"title": "b"}
        redone = client.wait(client.redo(first, 1, prompt="Three."))
        assert (redone.parent, redone.params["prompts"], redone.seed) == (first.id, ["One.", "Three."], 3)
        longer = client.wait(client.extend(first, audio=service.speech, prompt="More."))
        assert longer.duration_s == 2 * (first.duration_s or 0)
        again = client.wait(client.retry(first))
        assert again.params == first.params
        links = client.signed_urls(first)
        assert links.events
        assert links.stream
        assert links.inputs.keys() == {"person_image", "audio"}
