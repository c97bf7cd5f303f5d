from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from jobs.artifacts import FolderStore


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path)


def test_a_key_is_created_once_and_never_replaced(store: FolderStore) -> None:
    assert store.create("done/a", b"first")
    assert not store.create("done/a", b"second")
    assert store.read("done/a") == b"first"


def test_nothing_can_be_created_in_a_job_that_is_gone(store: FolderStore, tmp_path: Path) -> None:
    assert not store.create("jobs/gone/journal/000001.json", b"x")
    (store.scratch() / "video").write_bytes(b"x")
    assert not store.put_file(store.scratch() / "video", "jobs/gone/video.mp4")
    assert store.read("jobs/gone/video.mp4") is None


def test_a_written_key_replaces_the_old_content(store: FolderStore) -> None:
    store.write("checkpoints/a.json", b"1")
    store.write("checkpoints/a.json", b"2")
    assert store.read("checkpoints/a.json") == b"2"
    assert list(store.scratch().iterdir()) == []


@pytest.mark.parametrize("key", ["../outside", "jobs/../../outside", "/etc/passwd", "jobs/a/../../../x"])
def test_no_key_leaves_the_store(store: FolderStore, key: str) -> None:
    with pytest.raises(ValueError, match="leaves the store"):
        store.read(key)
    with pytest.raises(ValueError, match="leaves the store"):
        store.create(key, b"x")


def test_of_many_racing_folders_one_becomes_the_job(store: FolderStore) -> None:
    start = threading.Barrier(8)
    outcomes: list[str] = []

    def adopt(number: int) -> None:
        folder = store.scratch() / str(number)
        folder.mkdir()
        (folder / "who").write_text(str(number))
        start.wait()
        try:
            store.adopt_folder(folder, "jobs/one")
            outcomes.append(str(number))
        except FileExistsError:
            outcomes.append("lost")

    threads = [threading.Thread(target=adopt, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("lost") == 7
    [winner] = [outcome for outcome in outcomes if outcome != "lost"]
    assert store.read("jobs/one/who") == winner.encode()


def test_leftovers_are_removed_once_they_are_old_and_what_is_in_use_stays(store: FolderStore) -> None:
    old, used = store.scratch() / "old", store.scratch() / "used"
    for folder in (old, used):
        folder.mkdir()
        (folder / "file").write_bytes(b"x")
    long_ago = time.time() - 7200
    for path in (old, old / "file", used):
        os.utime(path, (long_ago, long_ago))
    store.remove_leftovers(store.now(), 3600, lambda name: False)
    assert not old.exists()
    assert (used / "file").exists()


def test_a_store_is_private_to_its_user(store: FolderStore) -> None:
    assert (store.root / "jobs").stat().st_mode & 0o077 == 0
