"""Storage as others leave it: stray files, damage, entries of a newer version, a disk that fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from contract.job import utcnow
from jobs.artifacts import FOLDERS, FolderStore, exposed_paths
from server.app import _forget_old, create_app
from server.keys import Scope, create_key
from server.storage_probe import KEPT_S
from server.usage import DAY
from tests.faults.disk import Disk, disk_in
from tests.server.conftest import CARD, Api, ApiFactory, make_settings, running, wait_for
from tests.server.inputs import form
from tests.server.journals import succeed

pytestmark = pytest.mark.slow

STRAYS = (".DS_Store", "Thumbs.db", "lost+found", ".keep", "job_short", "ümläut", "x" * 200, "\udcff")


def submit(api: Api, **headers: str) -> Any:
    return api.client.post("/v1/generate", files=form(), headers=headers)


def listed(api: Api) -> list[str]:
    answer = api.client.get("/v1/jobs")
    assert answer.status_code == 200, answer.text
    return [job["id"] for job in answer.json()["data"]]


def put_strays(store: FolderStore) -> None:
    """Files and folders that file managers, backups and people leave, in every folder of ours."""
    for folder in FOLDERS:
        for number, name in enumerate(STRAYS):
            path = store.root / folder / name
            if number % 2:
                (path / "inside").mkdir(parents=True)
            else:
                path.write_bytes(b"\x00\xffnot ours")


def test_stray_files_everywhere_disturb_nobody_and_are_counted(make_api: ApiFactory) -> None:
    api = make_api()
    first = submit(api).json()["id"]
    put_strays(api.store)
    assert listed(api) == [first]
    second = submit(api, **{"Idempotency-Key": "k"}).json()["id"]
    assert listed(api) == [second, first]
    assert api.client.get("/v1/models").json()["data"][0]["id"] == CARD.name
    _forget_old(api.services)
    assert api.client.delete(f"/v1/jobs/{first}").status_code == 200
    again = make_api()
    assert listed(again) == [second], "and the API starts again"
    strays = {name for name in STRAYS if (api.store.root / "jobs" / name).exists()}
    assert strays == set(STRAYS), "nothing of others is removed"
    counted = again.client.get("/metrics").text
    assert 'cointeract_passed_over{kind="stray"}' in counted


def test_a_stray_file_among_the_keys_locks_nobody_out(make_api: ApiFactory) -> None:
    api = make_api()
    (api.store.root / "keys" / ".DS_Store").write_bytes(b"\x00")
    assert listed(api) == []


def test_a_key_that_cannot_be_read_is_not_valid_and_others_are(make_api: ApiFactory) -> None:
    api = make_api()
    good = create_key(api.store, "ada", [Scope.ADMIN])
    newer = create_key(api.store, "bob", [Scope.ADMIN])
    path = api.store.root / "keys" / f"{newer.key.id}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "only_from": "10.0.0.0/8"}))
    bearer = {key.key.name: {"Authorization": f"Bearer {key.token}"} for key in (good, newer)}
    assert api.client.get("/v1/jobs", headers=bearer["ada"]).status_code == 200
    assert api.client.get("/v1/jobs", headers=bearer["bob"]).status_code == 401, "it may be restricted"


DAMAGE = {
    "empty": b"",
    "zeros": bytes(300),
    "half": b'{"type":"started","at":"2026-01-01T',
    "another type": b'{"type":"paused","at":"2026-01-01T00:00:00Z"}',
    "another value": b'{"type":"interrupted","at":"2026-01-01T00:00:00Z","attempt":1,"reason":"moon",'
    b'"burns_attempt":true}',
    "impossible": b'{"type":"succeeded","at":"2026-01-01T00:00:00Z","attempt":9,"duration_s":1,'
    b'"gpu_seconds":1,"video":{"name":"v","sha256":"0","size":1,"media_type":"video/mp4"}}',
    "depth": b"[" * 100_000,
}


@pytest.mark.parametrize("what", DAMAGE)
@pytest.mark.parametrize("entry", [0, 1])
def test_a_job_that_cannot_be_read_answers_for_itself_only(
    make_api: ApiFactory, what: str, entry: int
) -> None:
    api = make_api()
    bad, good = submit(api).json()["id"], submit(api).json()["id"]
    (api.store.root / f"jobs/{bad}/journal/{entry:06d}.json").write_bytes(DAMAGE[what])
    assert listed(api) == [good]
    answer = api.client.get(f"/v1/jobs/{bad}")
    assert (answer.status_code, answer.json()["code"]) == (500, "job_unreadable")
    assert api.client.get(f"/v1/jobs/{good}").status_code == 200
    assert submit(api).status_code == 202
    assert len(listed(make_api())) == 2, "and the API starts again"
    assert 'cointeract_passed_over{kind="job"} 1.0' in api.client.get("/metrics").text


@pytest.mark.timeout(60)
@pytest.mark.parametrize("what", ["folder", "pipe", "device", "huge"])
def test_an_entry_that_is_no_file_of_ours_is_unreadable(make_api: ApiFactory, what: str) -> None:
    api = make_api()
    bad, good = submit(api).json()["id"], submit(api).json()["id"]
    path = api.store.root / f"jobs/{bad}/journal/000001.json"
    match what:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case _:
            with path.open("wb") as file:
                file.truncate(2**40)
    assert listed(api) == [good]
    assert api.client.get(f"/v1/jobs/{bad}").json()["code"] == "job_unreadable"
    assert listed(make_api()) == [good]


def test_a_job_that_cannot_be_read_does_not_exist_for_others(make_api: ApiFactory) -> None:
    api = make_api()
    ada, bob = (create_key(api.store, name) for name in ("ada", "bob"))
    headers = {key.key.name: {"Authorization": f"Bearer {key.token}"} for key in (ada, bob)}
    job_id = submit(api, **headers["ada"]).json()["id"]
    (api.store.root / f"jobs/{job_id}/journal/000001.json").write_bytes(b"{")
    unknown = api.client.get(f"/v1/jobs/{job_id[:-1]}0", headers=headers["bob"])
    others = api.client.get(f"/v1/jobs/{job_id}", headers=headers["bob"])
    assert (
        (others.status_code, others.json()) == (unknown.status_code, unknown.json()) == (404, others.json())
    )
    assert api.client.get(f"/v1/jobs/{job_id}", headers=headers["ada"]).json()["code"] == "job_unreadable"


def test_a_rollback_reads_what_a_newer_version_wrote_with_more_fields(make_api: ApiFactory) -> None:
    api = make_api()
    job_id = submit(api).json()["id"]
    succeed(api, job_id)
    before = api.client.get(f"/v1/jobs/{job_id}").json()
    for path in sorted((api.store.root / f"jobs/{job_id}/journal").iterdir()):
        path.write_text(json.dumps(_with_news(json.loads(path.read_text()))))
    assert make_api().client.get(f"/v1/jobs/{job_id}").json() == before


MAPPINGS = ("metadata", "received")
"""What has names of its own rather than fields."""


def _with_news(value: Any) -> Any:
    """The value as a version would write it that knows one more field of everything."""
    if isinstance(value, dict):
        known = {name: inner if name in MAPPINGS else _with_news(inner) for name, inner in value.items()}
        return {**known, "of_tomorrow": {"a": [1]}}
    return [_with_news(inner) for inner in value] if isinstance(value, list) else value


def test_texts_that_a_submitter_chose_survive_with_any_names(make_api: ApiFactory) -> None:
    api = make_api()
    job_id = api.client.post("/v1/generate", files=form(metadata='{"of_tomorrow": "x"}')).json()["id"]
    assert make_api().client.get(f"/v1/jobs/{job_id}").json()["metadata"] == {"of_tomorrow": "x"}


def test_a_broken_card_hides_no_other(make_api: ApiFactory) -> None:
    api = make_api()
    for name, data in {"a.json": b"", "b.json": b"{", "c.json": b'{"name": "c"}'}.items():
        (api.store.root / "checkpoints" / name).write_bytes(data)
    empty = CARD.model_dump() | {"name": "d", "sizes": []}
    (api.store.root / "checkpoints" / "d.json").write_text(json.dumps(empty))
    newer = json.loads(CARD.model_dump_json()) | {"name": "e"}
    newer["defaults"]["of_tomorrow"] = 1
    (api.store.root / "checkpoints" / "e.json").write_text(json.dumps(newer))
    assert [model["id"] for model in api.client.get("/v1/models").json()["data"]] == ["e", CARD.name]
    assert submit(api).status_code == 202


# --- a disk that fails --------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with disk_in(tmp_path / "loop") as disk:
        yield disk


def is_ready(api: Api) -> bool:
    return bool(api.client.get("/readyz").json()["storage"])


@pytest.mark.parametrize("trouble", ["read_only", "fail"])
def test_storage_that_fails_is_told_as_such_and_heals(disk: Disk, redis_url: str, trouble: str) -> None:
    with running(make_settings(disk.path / "data", redis_url)) as api:
        job_id = submit(api).json()["id"]
        assert is_ready(api)
        getattr(disk, trouble)()
        for answer in (submit(api), api.client.post(f"/v1/jobs/{job_id}/cancel")):
            assert (answer.status_code, answer.json()["code"]) == (503, "storage_unavailable")
            assert "retry-after" in answer.headers
        wait_for(lambda: not is_ready(api), KEPT_S + 5)
        assert api.client.get("/healthz").status_code == 200
        assert api.client.get("/metrics").status_code == 200
        disk.writable() if trouble == "read_only" else disk.repair()
        wait_for(lambda: is_ready(api), KEPT_S + 5)
        assert submit(api).status_code == 202
        assert job_id in listed(api)


def test_an_api_starts_on_read_only_storage_and_shows_what_is_there(disk: Disk, redis_url: str) -> None:
    settings = make_settings(disk.path / "data", redis_url)
    with running(settings) as api:
        job_id = submit(api).json()["id"]
    disk.read_only()
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        assert client.get(f"/v1/jobs/{job_id}", headers={"host": "127.0.0.1"}).status_code == 200


# --- modes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", ["000", "022", "077", "777"])
def test_secrets_and_folders_are_ours_alone_whatever_the_umask(tmp_path: Path, umask: str) -> None:
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        f"os.umask(0o{umask})\n"
        "from jobs.artifacts import FolderStore\n"
        "from server.delivery.signing import UrlSigner\n"
        "from server.delivery.standard_webhooks import webhook_secret\n"
        "from server.keys import create_key\n"
        "store = FolderStore(Path(sys.argv[1]) / 'data' / 'storage')\n"
        "webhook_secret(store, None)\n"
        "UrlSigner(store).sign('/v1/x', UrlSigner.in_seconds(9))\n"
        "create_key(store, 'ada')\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, cwd=Path.cwd(), timeout=60)
    root = tmp_path / "data" / "storage"
    modes = {path.name: path.stat().st_mode & 0o777 for path in (root, *root.rglob("*"))}
    assert {"webhook.secret", "url-signing.secret"} <= modes.keys()
    assert {name: mode for name, mode in modes.items() if mode not in (0o600, 0o700)} == {}


def test_what_an_older_version_left_open_is_closed_at_start(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "storage")
    create_key(store, "ada")
    (store.root / "webhook.secret").write_bytes(b"whsec_x")
    for path in (store.root, *store.root.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    assert len(exposed_paths(store.root)) > len(FOLDERS)
    FolderStore(store.root)
    assert exposed_paths(store.root) == []
    assert (store.root / "webhook.secret").stat().st_mode & 0o777 == 0o600


# --- usage --------------------------------------------------------------------------------------------------


def test_usage_of_many_deleted_jobs_is_read_once_and_summed(make_api: ApiFactory) -> None:
    api = make_api()
    key = create_key(api.store, "ada")
    folder = api.store.root / "usage"
    text = json.dumps({"owner": key.key.id, "gpu_seconds": 0.5, "at": utcnow().isoformat()})
    for number in range(2000):
        (folder / f"job_{number:036d}.json").write_text(text)
    (folder / ".DS_Store").write_bytes(b"\x00")
    (folder / f"job_{'v' * 36}.json").write_bytes(b"{")
    usage = api.services.index.usage
    wait_for(lambda: usage.spent(key.key.id) == 1000.0, 10)
    reads: list[str] = []
    real = api.store.read
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api.store, "read", lambda name: reads.append(name) or real(name))
        assert submit(api, Authorization=f"Bearer {key.token}").status_code == 202
    assert not [name for name in reads if name.startswith("usage/")], "a submit reads none of the files"
    old = api.store.now() - DAY.total_seconds() - 60
    for path in folder.glob("job_0*"):
        os.utime(path, (old, old))
    api.services.index.expire(api.store.now())
    assert sorted(path.name for path in folder.iterdir()) == [".DS_Store", f"job_{'v' * 36}.json"]
