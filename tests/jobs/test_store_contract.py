"""What every store of files promises, kept by the folder and by S3."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import botocore.endpoint
import httpx
import pytest

from contract.settings import Settings
from jobs.artifacts import STORAGE_AWAY, ArtifactStore, FolderStore
from jobs.s3_objects import S3Objects
from jobs.s3_store import UPLOAD_S, S3Store
from jobs.storage import StoreRefusedError, open_store
from tests.s3_server import BUCKET, FAULTS, HANG_S, Fault, S3Server, empty_bucket, s3_server

pytestmark = pytest.mark.slow

OpenStore = Callable[[str], ArtifactStore]
WRITERS = 50
PART_BYTES = 5 * 2**20
"""The smallest part that S3 takes."""


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as running:
        yield running


@pytest.fixture
def s3(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    empty_bucket(server, monkeypatch)
    monkeypatch.setattr("jobs.s3_objects.PART_BYTES", PART_BYTES)
    return server


def s3_store(folder: Path, timeout_s: float = 20.0) -> S3Store:
    return S3Store(S3Objects(BUCKET, "of/us", timeout_s), folder, 2**30)


@pytest.fixture(params=["folder", "s3"])
def open_one(request: pytest.FixtureRequest, tmp_path: Path) -> OpenStore:
    """Opens the store as a process of the named machine does: machines share S3, and nothing else."""
    if request.param == "folder":
        return lambda machine: FolderStore(tmp_path / "storage")
    request.getfixturevalue("s3")
    return lambda machine: s3_store(tmp_path / machine)


@pytest.fixture
def store(open_one: OpenStore) -> ArtifactStore:
    return open_one("one")


def adopt(store: ArtifactStore, prefix: str, **files: str) -> None:
    folder = store.scratch() / f"incoming-{time.monotonic_ns()}-{threading.get_ident()}"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_text(content)
    store.adopt_folder(folder, prefix)


def put(store: ArtifactStore, key: str, content: bytes) -> bool:
    source = store.scratch() / f"put-{time.monotonic_ns()}"
    source.write_bytes(content)
    return store.put_file(source, key)


def race(*runs: Callable[[], object]) -> list[object]:
    """What each call returned, all started together."""
    start = threading.Barrier(len(runs))
    results: list[object] = [None] * len(runs)

    def run(number: int) -> None:
        start.wait()
        try:
            results[number] = runs[number]()
        except OSError as error:
            results[number] = type(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(runs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_a_key_is_created_once_and_never_replaced(store: ArtifactStore) -> None:
    assert store.create("done/a", b"first")
    assert not store.create("done/a", b"second")
    assert store.read("done/a") == b"first"
    assert store.exists("done/a")
    assert store.read("done/b") is None
    assert not store.exists("done/b")


def test_of_many_racing_writers_of_a_key_one_wins(store: ArtifactStore) -> None:
    adopt(store, "jobs/one", who="x")
    writers = [
        lambda number=number: store.create("jobs/one/journal", str(number).encode())
        for number in range(WRITERS)
    ]
    results = race(*writers)
    assert results.count(True) == 1
    assert results.count(False) == WRITERS - 1
    assert store.read("jobs/one/journal") == str(results.index(True)).encode()


def test_of_many_racing_folders_one_becomes_the_job(open_one: OpenStore) -> None:
    stores = [open_one("one"), open_one("two")]
    results = race(
        *(
            lambda number=number: adopt(stores[number % 2], "jobs/one", who=str(number), other=str(number))
            for number in range(8)
        )
    )
    assert results.count(FileExistsError) == 7
    winner = str(results.index(None)).encode()
    for store in stores:
        assert store.read("jobs/one/who") == store.read("jobs/one/other") == winner
        assert store.list_names("jobs/one") == ["other", "who"]


def test_nothing_can_be_written_to_a_job_that_is_gone(open_one: OpenStore) -> None:
    here, there = open_one("one"), open_one("two")
    adopt(here, "jobs/one", entry="0")
    assert there.exists("jobs/one/entry")  # it knows the job
    here.remove_folder("jobs/one")
    for store in (there, here):
        assert not store.create("jobs/one/next", b"1")
        assert not put(store, "jobs/one/video.mp4", b"video")
        with pytest.raises(FileNotFoundError):
            store.write("jobs/one/entry", b"2")
        assert store.read("jobs/one/entry") is None
        assert store.list_names("jobs") == store.list_names("jobs/one") == []
        with pytest.raises(FileNotFoundError):
            store.local_path("jobs/one/entry")


def test_a_file_that_was_removed_can_be_kept_again(open_one: OpenStore) -> None:
    here, there = open_one("one"), open_one("two")
    for content in ("old", "new"):
        adopt(here, "files/ada/file_1", content=content)
        assert there.read("files/ada/file_1/content") == content.encode()
        assert there.list_names("files") == ["ada"]
        assert there.list_names("files/ada") == ["file_1"]
        there.write("files/ada/file_1/content", b"changed")
        assert here.read("files/ada/file_1/content") == b"changed"
        there.remove_folder("files/ada/file_1")
        assert not here.exists("files/ada/file_1")
    there.remove_folder("files/ada/file_1")


def test_names_come_in_order_and_only_those_directly_below(store: ArtifactStore) -> None:
    names = [f"{number:012d}-job" for number in (20, 3, 100)]
    for name in names:
        store.create(f"done/{name}", b"")
    assert store.list_names("done") == sorted(names)
    adopt(store, "jobs/b", entry="0")
    adopt(store, "jobs/a", entry="0")
    put(store, "jobs/a/video.mp4", b"v")
    assert store.list_names("jobs") == ["a", "b"]
    assert store.list_names("jobs/a") == ["entry", "video.mp4"]
    store.remove(f"done/{names[0]}")
    store.remove("done/never-was")
    assert store.list_names("done") == sorted(names[1:])
    assert store.list_names("keys") == []


def test_more_names_than_one_answer_of_s3_holds(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.s3_objects.PAGE_NAMES", 10)
    names = [f"{number:04d}" for number in range(32)]
    for name in reversed(names):
        store.create(f"done/{name}", b"")
    assert store.list_names("done") == names


def test_a_file_is_put_whole_and_read_back_on_every_machine(open_one: OpenStore) -> None:
    here, there = open_one("one"), open_one("two")
    adopt(here, "jobs/one", entry="0")
    for size in (0, 1, 1000, PART_BYTES, 2 * PART_BYTES + 7):
        content = os.urandom(1000) * (size // 1000) + b"x" * (size % 1000)
        assert put(here, f"jobs/one/{size}", content)
        for store in (here, there):
            assert store.local_path(f"jobs/one/{size}").read_bytes() == content
    assert put(here, "jobs/one/1", b"y"), "it may be replaced"
    assert there.local_path("jobs/one/1").read_bytes() == b"y"


def test_putting_again_what_was_put_changes_nothing(store: ArtifactStore) -> None:
    adopt(store, "jobs/one", entry="0")
    source = store.scratch() / "source"
    source.write_bytes(b"video")
    assert store.put_file(source, "jobs/one/video")
    assert store.put_file(source, "jobs/one/video")
    assert not store.put_file(source, "jobs/one/another")
    assert store.local_path("jobs/one/video").read_bytes() == b"video"


def test_a_fetched_file_outlives_its_key(store: ArtifactStore) -> None:
    adopt(store, "jobs/one", person="photo")
    store.fetch("jobs/one/person", store.scratch() / "mine")
    store.remove_folder("jobs/one")
    assert (store.scratch() / "mine").read_text() == "photo"
    with pytest.raises(FileNotFoundError):
        store.fetch("jobs/one/person", store.scratch() / "late")


def test_files_are_fetched_where_there_are_no_hard_links(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(errno.EPERM, "no hard links here")

    adopt(store, "jobs/one", person="photo")
    monkeypatch.setattr(os, "link", refuse)
    target = store.scratch() / "mine"
    store.fetch("jobs/one/person", target)
    assert (target.read_text(), target.stat().st_mode & 0o077) == ("photo", 0)


def test_a_folder_takes_over_files_of_another_and_keeps_them(open_one: OpenStore) -> None:
    here, there = open_one("one"), open_one("two")
    adopt(here, "jobs/one", person="photo")
    folder = there.scratch() / "incoming"
    (folder / "inputs").mkdir(parents=True)
    (folder / "entry").write_text("0")
    there.share("jobs/one/person", folder / "inputs/person.png")
    there.adopt_folder(folder, "jobs/two")
    here.remove_folder("jobs/one")
    assert there.read("jobs/two/inputs/person.png") == here.read("jobs/two/inputs/person.png") == b"photo"
    assert here.list_names("jobs/two/inputs") == ["person.png"]
    assert here.read("jobs/two/entry") == b"0"
    with pytest.raises(FileNotFoundError):
        there.share("jobs/one/person", there.scratch() / "late")


def test_times_are_the_stores_own(store: ArtifactStore) -> None:
    before = store.now()
    store.write("checkpoints/a.json", b"1")
    written = store.written_at("checkpoints/a.json")
    assert written is not None
    assert before - 1 <= written <= store.now() + 1
    assert abs(written - time.time()) < 60
    assert store.written_at("checkpoints/b.json") is None
    store.check()


@pytest.mark.parametrize("key", ["../outside", "jobs/../../outside", "/etc/passwd", "jobs/a/../../../x"])
def test_no_key_leaves_the_store(store: ArtifactStore, key: str) -> None:
    with pytest.raises(ValueError, match="leaves the store"):
        store.read(key)
    with pytest.raises(ValueError, match="leaves the store"):
        store.create(key, b"x")


def test_old_leftovers_in_scratch_go_and_what_is_in_use_stays(store: ArtifactStore) -> None:
    for name in ("old", "used", "new"):
        (store.scratch() / name).mkdir()
    for name in ("old", "used"):
        os.utime(store.scratch() / name, (time.time() - 7200,) * 2)
    store.remove_leftovers(store.now(), 3600, lambda name: name == "used")
    assert sorted(path.name for path in store.scratch().iterdir()) == ["new", "used"]


# What only S3 can get wrong


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_the_promises_hold_when_each_first_try_fails(
    fault: Fault, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoPause:
        time = staticmethod(time.time)
        sleep = staticmethod(lambda seconds: None)

    monkeypatch.setattr(botocore.endpoint, "time", NoPause)
    timeout_s = HANG_S / 2 if fault == "hang" else 20.0
    here, there = s3_store(tmp_path / "one", timeout_s), s3_store(tmp_path / "two", timeout_s)
    s3.each_first_try(fault)
    adopt(here, "jobs/one", person="photo" * 1000, entry="0")
    with pytest.raises(FileExistsError):
        adopt(there, "jobs/one", person="other", entry="1")
    assert here.create("jobs/one/next", b"mine"), "although its first try may have arrived"
    assert not there.create("jobs/one/next", b"theirs")
    assert there.read("jobs/one/next") == b"mine"
    large = b"0123456789" * (PART_BYTES // 8)
    assert put(here, "jobs/one/video", large)
    assert there.local_path("jobs/one/video").read_bytes() == large
    assert there.list_names("jobs/one") == ["entry", "next", "person", "video"]
    assert there.local_path("jobs/one/person").read_text() == "photo" * 1000
    there.remove_folder("jobs/one")
    assert not here.create("jobs/one/late", b"x")
    s3.fault_of = lambda method, path: None
    assert [*here._objects.list_keys("trees"), *here._objects.list_keys("pending")] == []


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS[:5])
def test_what_fails_for_good_says_that_storage_is_away_and_shows_nothing(
    fault: Fault, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.s3_objects.TRIES", 2)
    store = s3_store(tmp_path / "one", HANG_S / 2 if fault == "hang" else 20.0)
    adopt(store, "jobs/one", entry="0")
    s3.fault_of = lambda method, path: fault if method in ("PUT", "POST") else None
    for write in (
        lambda: store.create("jobs/one/next", b"half of it"),
        lambda: store.write("checkpoints/a.json", b"half of it"),
        lambda: put(store, "jobs/one/video", b"half of it"),
        lambda: adopt(store, "jobs/two", entry="half of it"),
        store.check,
    ):
        with pytest.raises(OSError, match="S3") as caught:
            write()
        assert caught.value.errno in STORAGE_AWAY
    s3.fault_of = lambda method, path: None
    assert store.list_names("jobs") == ["one"]
    assert store.list_names("jobs/one") == ["entry"]
    assert store.list_names("checkpoints") == []
    assert store.create("jobs/one/next", b"whole")


def test_an_upload_that_breaks_off_between_its_parts_shows_nothing_and_leaves_nothing(
    s3: S3Server, tmp_path: Path
) -> None:
    store = s3_store(tmp_path)
    adopt(store, "jobs/one", entry="0")
    s3.fault_of = lambda method, path: "503" if "partNumber=2" in path else None
    with pytest.raises(OSError, match="SlowDown"):
        put(store, "jobs/one/video", b"v" * (PART_BYTES + 1))
    s3.fault_of = lambda method, path: None
    assert store.list_names("jobs/one") == ["entry"]
    uploads = store._objects._client.list_multipart_uploads(Bucket=BUCKET)
    assert uploads.get("Uploads", []) == []


def test_a_bucket_that_is_gone_does_not_pass_for_an_empty_one(s3: S3Server, tmp_path: Path) -> None:
    store = s3_store(tmp_path)
    client = store._objects._client
    client.delete_bucket(Bucket=BUCKET)
    for ask in (
        lambda: store.read("done/a"),
        lambda: store.exists("done/a"),
        lambda: store.written_at("done/a"),
        lambda: store.list_names("done"),
        lambda: store.local_path("done/a"),
        store.now,
    ):
        with pytest.raises(OSError, match=r"bucket|Bucket") as caught:
            ask()
        assert caught.value.errno in STORAGE_AWAY


@pytest.mark.parametrize("moment", ["upload", "pointer", "clearing"])
def test_leftovers_of_a_process_that_died_are_removed_and_jobs_stay(
    moment: str, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = s3_store(tmp_path)

    def die(*arguments: object, **more: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        if moment == "upload":
            patched.setattr(store, "_bury", lambda prefix, token: None)
            patched.setattr(store, "_must_be_pending", die)
        elif moment == "pointer":
            patched.setattr(shutil, "rmtree", die)
        else:
            adopt(store, "jobs/one", entry="0")
            patched.setattr(store, "_clear", die)
        with pytest.raises(KeyboardInterrupt):
            store.remove_folder("jobs/one") if moment == "clearing" else adopt(store, "jobs/one", entry="0")
    objects, is_there = store._objects, moment == "pointer"
    assert len(list(objects.list_keys("pending"))) == 1
    store.remove_leftovers(store.now(), 3600, lambda name: False)
    assert len(list(objects.list_keys("pending"))) == 1, "it may go on"
    store.remove_leftovers(store.now() + 2 * UPLOAD_S + 60, 3600, lambda name: False)
    assert list(objects.list_keys("pending")) == []
    assert len(list(objects.list_keys("trees"))) == (1 if is_there else 0)
    assert store.exists("jobs/one/entry") == is_there


def test_a_tree_that_took_too_long_to_upload_is_not_shown(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = s3_store(tmp_path)
    monkeypatch.setattr("jobs.s3_store.UPLOAD_S", -5.0)
    with pytest.raises(OSError, match="took longer"):
        adopt(store, "jobs/one", entry="0")
    assert store.list_names("jobs") == []


def test_copies_are_kept_up_to_a_size_and_the_least_used_go_first(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = S3Store(S3Objects(BUCKET, ""), tmp_path, cache_bytes=2500)
    adopt(store, "jobs/one", a="a" * 1000, b="b" * 1000, c="c" * 1000)
    first = store.local_path("jobs/one/a")
    os.utime(first, (0, 0))
    s3.requests.clear()
    assert store.local_path("jobs/one/a") == first
    assert not any(request.startswith("GET") and "/a" in request for request in s3.requests), "no download"
    os.utime(store.local_path("jobs/one/b"), (0, 0))
    store.fetch("jobs/one/b", tmp_path / "held")
    os.utime(store.local_path("jobs/one/b"), (0, 0))
    store.local_path("jobs/one/c")
    kept = {path.read_text()[0] for path in first.parent.iterdir()}
    assert kept == {"a", "c"}
    assert (tmp_path / "held").read_text() == "b" * 1000
    assert store.local_path("jobs/one/b").read_text() == "b" * 1000, "it is downloaded again"


def test_a_stray_folder_among_the_copies_disturbs_nobody(s3: S3Server, tmp_path: Path) -> None:
    store = S3Store(S3Objects(BUCKET, ""), tmp_path, cache_bytes=0)
    stray = tmp_path / "cache" / "lost+found"
    stray.mkdir()
    os.utime(stray, (0, 0))
    adopt(store, "jobs/one", a="a")
    assert store.local_path("jobs/one/a").read_text() == "a"
    assert stray.is_dir()


def test_a_signed_url_gives_the_file_for_a_while(s3: S3Server, tmp_path: Path) -> None:
    store = S3Store(S3Objects(BUCKET, "of/us"), tmp_path, 2**30, signs_urls=True)
    adopt(store, "jobs/one", video="v")
    url = store.signed_url("jobs/one/video", 60, "video/mp4", 'inline; filename="x.mp4"')
    assert url is not None
    answer = httpx.get(url)
    assert answer.content == b"v"
    assert answer.headers["content-type"] == "video/mp4"
    assert answer.headers["content-disposition"] == 'inline; filename="x.mp4"'
    assert s3_store(tmp_path).signed_url("jobs/one/video", 60, "video/mp4", "inline") is None, "not asked for"
    with pytest.raises(FileNotFoundError):
        store.signed_url("jobs/two/video", 60, "video/mp4", "inline")


def test_a_store_without_conditional_writes_is_refused_at_the_start(s3: S3Server, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, storage_url=f"s3://{BUCKET}/some/place")  # type: ignore[call-arg]
    assert isinstance(open_store(settings), S3Store)
    s3.dropped_headers = frozenset({"if-none-match"})
    with pytest.raises(StoreRefusedError, match="conditional writes"):
        open_store(settings)
    assert open_store(settings, probe=False).list_names("probe") == []


def test_credentials_that_are_missing_are_named(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(OSError, match="credentials") as caught:
        s3_store(tmp_path).check()
    assert caught.value.errno in STORAGE_AWAY
