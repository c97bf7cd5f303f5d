"""`cointeract jobs` as a user runs it, against a real service."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cointeract_client import Client

from tests.client.conftest import Service

pytestmark = pytest.mark.slow

COMMAND = str(Path(sys.executable).with_name("cointeract"))


def cointeract(
    service: Service, *arguments: str, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, *arguments, "--url", service.url],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=folder,
        env={"COLUMNS": "200", "PATH": "/"},
    )


@pytest.fixture
def job_id(service: Service) -> str:
    with Client(service.url) as client:
        return client.submit(
            person_image=service.person, audio=service.speech, prompt="One.", metadata={"shop": "one"}
        ).id


def test_a_job_is_watched_shown_listed_and_saved(service: Service, job_id: str, tmp_path: Path) -> None:
    watched = cointeract(service, "jobs", "watch", job_id)
    assert (watched.returncode, "has succeeded" in watched.stdout) == (0, True), watched.stderr
    shown = cointeract(service, "jobs", "show", job_id)
    assert "succeeded" in shown.stdout
    assert "shop=one" in shown.stdout
    as_json = json.loads(cointeract(service, "jobs", "show", job_id, "--json").stdout)
    assert as_json["metadata"] == {"shop": "one"}
    listed = cointeract(service, "jobs", "list", "--status", "succeeded", "--metadata", "shop=one")
    assert job_id in listed.stdout
    none = cointeract(service, "jobs", "list", "--metadata", "shop=two", "--json")
    assert (none.returncode, none.stdout) == (0, "")
    said = cointeract(service, "jobs", "log", job_id).stdout
    for words in (
        "submitted",
        "attempt 1 started on cpu",
        "denoising, clip 0",
        "clip 1 finished",
        "succeeded",
    ):
        assert words in said
    saved = cointeract(service, "jobs", "get", job_id, folder=tmp_path)
    assert saved.returncode == 0, saved.stderr
    assert (tmp_path / f"{job_id}.mp4").read_bytes()[4:8] == b"ftyp"
    clip = cointeract(service, "jobs", "get", job_id, "--clip", "1", "-o", "sub/clip.mp4", folder=tmp_path)
    assert clip.returncode == 0, clip.stderr
    assert (tmp_path / "sub" / "clip.mp4").read_bytes()[4:8] == b"ftyp"


@pytest.fixture
def waiting(service: Service) -> Iterator[str]:
    """A job that waits for as long as a test needs it."""
    with Client(service.url) as client:
        names = [worker.name for worker in client.workers().data]
        for name in names:
            client.drain(name)
        yield client.submit(person_image=service.person, audio=service.speech, prompt="One.").id
        for name in names:
            client.resume(name)


def test_jobs_are_canceled_and_deleted_and_a_bad_id_holds_up_no_other(service: Service, waiting: str) -> None:
    job_id = waiting
    canceled = cointeract(service, "jobs", "cancel", "job_nonsense", job_id)
    assert canceled.returncode == 1
    assert f"{job_id} canceled" in canceled.stdout
    assert "job_nonsense" in canceled.stderr
    watched = cointeract(service, "jobs", "watch", job_id)
    assert (watched.returncode, "canceled" in watched.stderr) == (1, True)
    assert cointeract(service, "jobs", "delete", job_id).returncode == 0
    gone = cointeract(service, "jobs", "show", job_id)
    assert (gone.returncode, "no such job" in gone.stderr) == (1, True)
    assert "Traceback" not in gone.stderr


def test_wrong_usage_and_a_server_that_is_away_are_said_so(service: Service) -> None:
    assert cointeract(service, "jobs", "list", "--metadata", "x").returncode == 2
    assert cointeract(service, "jobs", "list", "--status", "done").returncode == 2
    away = subprocess.run(
        [COMMAND, "jobs", "list", "--url", "http://127.0.0.1:9"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (away.returncode, "cointeract up" in away.stderr) == (1, True)


def test_the_demo_ends_with_the_address_of_its_video_in_the_studio(service: Service, tmp_path: Path) -> None:
    done = cointeract(service, "demo", "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    with Client(service.url) as client:
        newest = next(iter(client.jobs()))
    assert f"{service.url}/#job={newest.id}" in done.stdout
    assert (tmp_path / "presenter.mp4").stat().st_size > 0
