"""A table of videos, through the package and through `cointeract batch`, against a real service."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cointeract_client import Client, Result, read_rows, run_batch

from tests.client.conftest import Service
from tests.server.inputs import audio_bytes, image_bytes

pytestmark = pytest.mark.slow

COMMAND = str(Path(sys.executable).with_name("cointeract"))


def write_table(folder: Path, rows: list[dict[str, str]]) -> Path:
    columns = list({name: None for row in rows for name in row})
    path = folder / "rows.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as file:  # as spreadsheets write it
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "person.png").write_bytes(image_bytes())
    for number in range(3):
        (tmp_path / f"product{number}.png").write_bytes(image_bytes(size=(64, 65 + number)))
    (tmp_path / "speech.wav").write_bytes(audio_bytes(seconds=4.0))
    return tmp_path


def shop(count: int, **more: str) -> list[dict[str, str]]:
    return [
        {
            "name": f"Cup {number}!",
            "person": "person.png",
            "product": f"product{number % 3}.png",
            "audio": "speech.wav",
            "prompt": "She shows it.",
            "prompt2": f"She turns number {number}.",
            "seed": str(number),
            "metadata.sku": f"A{number}",
            **more,
        }
        for number in range(count)
    ]


def results_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_each_row_becomes_a_video_and_each_file_is_sent_once(
    service: Service, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Any] = []
    keep = Client.keep
    monkeypatch.setattr(
        Client, "keep", lambda self, file, **more: sent.append(file) or keep(self, file, **more)
    )
    rows = read_rows(write_table(folder, shop(5)))
    told: list[Result] = []
    with Client(service.url) as client:
        results = run_batch(client, rows, folder / "out", at_once=3, on_result=told.append)
        job = client.job(results[4].job)
    assert [(result.state, result.file) for result in results] == [
        ("succeeded", f"Cup-{number}.mp4") for number in range(5)
    ]
    for result in results:
        assert (folder / "out" / result.file).read_bytes()[4:8] == b"ftyp"
    assert len(sent) == 5, "one person, one speech, three products"
    assert (job.seed, job.metadata) == (4, {"sku": "A4"})
    assert job.params["prompts"] == ["She shows it.", "She turns number 4."]
    assert [(line["row"], line["state"]) for line in results_of(folder / "out")] == [
        (str(number), "succeeded") for number in range(1, 6)
    ]
    assert {result.state for result in told} == {"submitted", "succeeded"}


def test_a_bad_row_stops_no_other_and_is_made_again_once_it_is_corrected(
    service: Service, folder: Path
) -> None:
    rows = shop(4)
    rows[0]["size"] = "100x100"
    rows[1]["audio"] = "nowhere.wav"
    rows[2]["prompt"] = rows[2]["prompt2"] = "fault:error"
    table, out = write_table(folder, rows), folder / "out"
    with Client(service.url) as client:
        first = run_batch(client, read_rows(table), out)
        assert [result.state for result in first] == ["refused", "refused", "failed", "succeeded"]
        assert "size" in first[0].error
        assert "nowhere.wav" in first[1].error
        assert first[2].error
        made_at = (out / first[3].file).stat().st_mtime_ns
        again = run_batch(client, read_rows(table), out)
        assert again == first, "what has failed is not tried again by itself"
        for number in (0, 1, 2):
            rows[number] = shop(4)[number]
        write_table(folder, rows)
        mended = run_batch(client, read_rows(table), out)
    assert [result.state for result in mended] == ["succeeded"] * 4
    assert (out / mended[3].file).stat().st_mtime_ns == made_at, "a finished row is left alone"


def test_retry_makes_another_job_of_a_failed_row(service: Service, folder: Path) -> None:
    table = write_table(folder, shop(1, prompt="fault:error", prompt2="x"))
    with Client(service.url) as client:
        (first,) = run_batch(client, read_rows(table), folder / "out")
        (again,) = run_batch(client, read_rows(table), folder / "out", retry=True)
    assert (first.state, again.state) == ("failed", "failed")
    assert first.job != again.job


def test_the_same_table_in_another_folder_makes_new_videos(service: Service, folder: Path) -> None:
    rows = read_rows(write_table(folder, shop(1)))
    with Client(service.url) as client:
        jobs = {run_batch(client, rows, folder / name)[0].job for name in ("one", "two")}
    assert len(jobs) == 2


def test_a_killed_batch_goes_on_without_making_a_job_twice(service: Service, folder: Path) -> None:
    label = f"killed-{time.time()}"
    table, out = write_table(folder, shop(6, **{"metadata.sku": label})), folder / "out"
    environment = {**os.environ, "COLUMNS": "200"}
    arguments = [COMMAND, "batch", str(table), "--out", str(out), "--url", service.url, "--at-once", "2"]
    running = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert running.stdout is not None
    for line in running.stdout:
        if "succeeded" in line:
            break
    running.send_signal(signal.SIGKILL)
    running.wait()
    before = {line["row"]: line for line in results_of(out)}
    assert {line["state"] for line in before.values()} >= {"succeeded"}
    lines = results_of(out)
    for line in lines:  # as if it had been killed between a submit and noting it down
        if line["state"] == "submitted":
            line["state"], line["job"] = "waiting", ""
    with (out / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, lines[0].keys())
        writer.writeheader()
        writer.writerows(lines)
    done = subprocess.run(
        arguments, capture_output=True, text=True, env=environment, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "6 of 6 videos" in done.stdout
    with Client(service.url) as client:
        made = list(client.jobs(metadata={"sku": label}))
    assert len(made) == 6, "one job for each row"
    assert all((out / line["file"]).exists() for line in results_of(out))


def test_a_table_that_cannot_be_understood_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="two rows are named"):
        read_rows(write_table(folder, [{"name": "a", "person": "p"}, {"name": "a", "person": "p"}]))
    with pytest.raises(ValueError, match="row 1 names no person"):
        read_rows(write_table(folder, [{"name": "a"}]))
    (folder / "rows.csv").write_text("person,audio\na,b,c\n")
    with pytest.raises(ValueError, match="more cells"):
        read_rows(folder / "rows.csv")
    done = subprocess.run(
        [COMMAND, "batch", str(folder / "rows.csv"), "--out", str(folder / "out")],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, "more cells" in done.stderr) == (1, True)


def test_names_of_videos_stay_in_the_folder(folder: Path) -> None:
    rows = [{"name": "../../etc/passwd", "person": "p"}, {"name": "…/", "person": "p"}, {"person": "p"}]
    assert [row.name for row in read_rows(write_table(folder, rows))] == ["etc-passwd", "0002", "0003"]


def test_expired_kept_files_are_sent_again(
    service: Service, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = read_rows(write_table(folder, shop(2)))
    submit = Client.submit
    forgotten: list[str] = []

    def forgetful(self: Client, **given: Any) -> Any:
        if not forgotten:
            forgotten.append(given["person_image"])
            self.forget(given["person_image"])
        return submit(self, **given)

    monkeypatch.setattr(Client, "submit", forgetful)
    with Client(service.url) as client:
        results = run_batch(client, rows, folder / "out")
    assert [result.state for result in results] == ["succeeded"] * 2
    shutil.rmtree(folder / "out")
