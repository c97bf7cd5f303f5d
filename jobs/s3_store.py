"""The store of files in an S3 bucket, for machines that share no disk.

S3 has no folders, no rename and no lock; it has one write that fails if the object exists. From this one we
make both guarantees of a store:

* A file appears when its upload is complete, and is created once: that is what a conditional write does.
* A folder that is adopted (a job, a kept file) is uploaded to a place that nobody knows,
  "trees/<folder>/<token>/…". Then its pointer, the object "<folder>", is created: it holds the token, so of
  many racing folders one wins, and all its files appear in one step. With the pointer they vanish in one.
* Whoever writes into a folder looks at the pointer again behind the write. If it is gone, the write was too
  late and is taken back, so nothing is left of a removed job.

Before a tree is uploaded, and before it is deleted, a note "pending/<token>" says so. `remove_leftovers` goes
on where a process died.
"""

from __future__ import annotations

import errno
import hashlib
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Final

from jobs.artifacts import FOLDERS, SECRET_SUFFIX, link_or_copy, make_private_folder, remove_old_files
from jobs.local_cache import LocalCache
from jobs.passed_over import PassedOver
from jobs.s3_objects import NoConditionalWrites, S3Objects

TREES: Final = {"jobs": 2, "files": 3}
"""Which keys are adopted folders, by their first part: those with this number of parts."""
POINTER_KEPT_S: Final = 5.0
"""How long a job's pointer is believed when its files are read. A job that was removed stays so."""
UPLOAD_S: Final = 1800.0
"""Within which a folder must be uploaded. `remove_leftovers` is given a longer time."""
TRANSFERS_AT_ONCE: Final = 16
_STAND_IN: Final = ".shared"
"""Ending of a local file that holds nothing but the key of the object to be copied in its place."""
_FIRST: Final = "journal/000000.json"
"""What says that a job exists. It is deleted first, so that nobody reads half of a job that goes."""


class S3Store:
    """An `ArtifactStore` in an S3 bucket. `folder` is local: for unfinished files and for copies."""

    is_remote = True

    def __init__(
        self, objects: S3Objects, folder: Path, cache_bytes: int, *, signs_urls: bool = False
    ) -> None:
        self._signs_urls = signs_urls
        self.passed_over = PassedOver()
        self._objects, self._folder = objects, folder.resolve()
        self._cache = LocalCache(self._folder / "cache", cache_bytes)
        for path in (self.scratch(), self._cache.folder):
            make_private_folder(path)
        self._pointers: dict[str, tuple[float, str]] = {}
        """Tokens of jobs, and when they were read."""
        self._pool = ThreadPoolExecutor(TRANSFERS_AT_ONCE, thread_name_prefix="s3")

    def why_unfit(self) -> str | None:
        """What the store lacks; None if it has all. Raises OSError if it does not answer."""
        key = f"probe/{secrets.token_hex(8)}"
        try:
            creates_once = self._objects.create(key, b"1") and not self._objects.create(key, b"2")
        except NoConditionalWrites:
            creates_once = False
        self._objects.remove(key)
        if creates_once:
            return None
        return (
            "the store does not know conditional writes (PutObject with If-None-Match: *), without which two "
            "workers could render one job. AWS S3, Cloudflare R2, and newer versions of MinIO and Ceph do. "
            "See that no proxy drops the header."
        )

    # Where things are

    def _split(self, key: str) -> tuple[str | None, str]:
        """The adopted folder that a key lies in, if any, and the key within it."""
        parts = key.split("/")
        if key.startswith("/") or ".." in parts:
            raise ValueError(f"key leaves the store: {key!r}")
        depth = TREES.get(parts[0])
        if depth is None or len(parts) <= depth:
            return None, key
        return "/".join(parts[:depth]), "/".join(parts[depth:])

    def _token(self, prefix: str) -> str | None:
        """What the pointer of a folder says now; None if there is no such folder."""
        data = self._objects.get(prefix)
        if data is None:
            self._pointers.pop(prefix, None)
            return None
        token = data.decode(errors="replace")
        if prefix.startswith("jobs/"):  # a kept file may be removed and sent again, a job never comes back
            self._pointers[prefix] = time.monotonic(), token
        return token

    def _object(self, key: str) -> str | None:
        """The object in which a key's content lies, if there is any; None if its folder is gone."""
        prefix, name = self._split(key)
        if prefix is None:
            return key
        read_at, token = self._pointers.get(prefix, (float("-inf"), None))
        if time.monotonic() - read_at > POINTER_KEPT_S:
            token = self._token(prefix)
        return None if token is None else _tree(prefix, token, name)

    def _is_in_place(self, key: str, placed: str) -> bool:
        """Whether what was written to the object `placed` can be found at `key`. If its folder is gone, the
        write is taken back.
        """
        prefix, name = self._split(key)
        if prefix is None:
            return True
        token = self._token(prefix)
        if token is not None and _tree(prefix, token, name) == placed:
            return True
        self._objects.remove(placed)
        return False

    # Small files

    def create(self, key: str, data: bytes, *, durable: bool = True) -> bool:
        placed = self._object(key)
        return placed is not None and self._objects.create(placed, data) and self._is_in_place(key, placed)

    def write(self, key: str, data: bytes) -> None:
        placed = self._object(key)
        if placed is not None:
            self._objects.put(placed, data)
        if placed is None or not self._is_in_place(key, placed):
            raise FileNotFoundError(errno.ENOENT, "its folder is gone", key)

    def read(self, key: str) -> bytes | None:
        placed = self._object(key)
        return None if placed is None else self._objects.get(placed)

    def digest(self, key: str) -> tuple[str, int] | None:
        placed = self._object(key)
        return None if placed is None else self._objects.digest(placed)

    def exists(self, key: str) -> bool:
        placed = self._object(key)
        return placed is not None and self._objects.exists(placed)

    def written_at(self, key: str) -> float | None:
        placed = self._object(key)
        found = None if placed is None else self._objects.head(placed)
        return None if found is None else float(found["LastModified"].timestamp())

    def now(self) -> float:
        return self._objects.now()

    def check(self) -> None:
        key = f"probe/{secrets.token_hex(8)}"
        self._objects.put(key, b"?")
        try:
            if self._objects.get(key) != b"?":
                raise OSError(errno.EIO, "S3 does not have what was just written", key)
        finally:
            self._objects.remove(key)

    def remove(self, key: str) -> None:
        placed = self._object(key)
        if placed is not None:
            self._objects.remove(placed)

    def list_names(self, prefix: str) -> list[str]:
        placed = self._object(f"{prefix}/")
        return [] if placed is None else self._objects.list_names(placed.rstrip("/"))

    # Large files

    def put_file(self, source: Path, key: str) -> bool:
        placed = self._object(key)
        if placed is None:
            return False
        if not source.exists() and self._objects.exists(placed):  # an earlier call failed behind the upload
            return self._is_in_place(key, placed)
        try:
            tag = self._objects.upload(source, placed)
        except FileNotFoundError:
            return False
        if not self._is_in_place(key, placed):
            return False
        self._cache.take(source, _copy_name(placed, tag))  # whoever made it may well read it again
        return True

    def local_path(self, key: str) -> Path:
        placed = self._object(key)
        found = None if placed is None else self._objects.head(placed)
        if placed is None or found is None:
            raise FileNotFoundError(key)

        def download(target: Path) -> None:
            if not self._objects.download(placed, target):
                raise FileNotFoundError(key)

        return self._cache.get(_copy_name(placed, found["ETag"]), download)

    def fetch(self, key: str, target: Path) -> None:
        link_or_copy(self.local_path(key), target)

    def share(self, key: str, target: Path) -> None:
        placed = self._object(key)
        if placed is None or not self._objects.exists(placed):
            raise FileNotFoundError(key)
        target.with_name(target.name + _STAND_IN).write_text(placed, encoding="utf-8")

    def signed_url(self, key: str, seconds: int, media_type: str, disposition: str) -> str | None:
        if not self._signs_urls:
            return None
        placed = self._object(key)
        if placed is None or self._objects.head(placed) is None:
            raise FileNotFoundError(key)
        headers = {"ResponseContentType": media_type, "ResponseContentDisposition": disposition}
        return self._objects.signed_url(placed, seconds, **headers)

    # Folders

    def adopt_folder(self, source: Path, prefix: str, *, after: Sequence[str] = ()) -> None:
        if self._token(prefix) is not None:
            raise FileExistsError(prefix)
        token = secrets.token_hex(16)
        self._objects.put(_pending(token), prefix.encode())
        files = [path for path in source.rglob("*") if not path.is_dir()]
        try:
            list(self._pool.map(partial(self._upload, source, _tree(prefix, token, "")), files))
            self._must_be_pending(token)
        except BaseException:
            self._bury(prefix, token)
            raise
        # If this raises, the pointer may be there or not: then remove_leftovers finds out what to do.
        if not self._objects.create(prefix, token.encode()):
            self._bury(prefix, token)
            raise FileExistsError(prefix)
        self._token(prefix)
        shutil.rmtree(source, ignore_errors=True)
        self._objects.remove(_pending(token))

    def _upload(self, folder: Path, tree: str, path: Path) -> None:
        placed = tree + path.relative_to(folder).as_posix()
        if path.suffix != _STAND_IN:
            self._objects.upload(path, placed)
        elif not self._objects.copy(path.read_text(encoding="utf-8"), placed.removesuffix(_STAND_IN)):
            raise FileNotFoundError(errno.ENOENT, "what it shares was removed", path.name)

    def _must_be_pending(self, token: str) -> None:
        """A process that was stopped for long must not show a tree that others have cleaned up meanwhile."""
        note = self._objects.head(_pending(token))
        if note is None or self.now() - note["LastModified"].timestamp() > UPLOAD_S:
            raise OSError(errno.ETIMEDOUT, f"the upload took longer than {UPLOAD_S:.0f} s", token)

    def remove_folder(self, prefix: str) -> None:
        token = self._token(prefix)
        if token is None:
            return
        self._objects.put(_pending(token), prefix.encode())
        self._objects.remove(prefix)
        self._pointers.pop(prefix, None)
        self._clear(prefix, token)

    def _clear(self, prefix: str, token: str) -> None:
        """Delete a tree that no pointer names."""
        self._objects.remove(_tree(prefix, token, _FIRST))
        rest = list(self._objects.list_keys(_tree(prefix, token, "").rstrip("/")))
        list(self._pool.map(self._objects.remove, rest))
        self._objects.remove(_pending(token))

    def _bury(self, prefix: str, token: str) -> None:
        try:
            self._clear(prefix, token)
        except OSError as error:  # remove_leftovers tries again
            self.passed_over.note("leftover", prefix, error)

    def unreachable(self) -> Iterator[tuple[str, str]]:
        known = {*FOLDERS, "trees", "pending", "probe"}
        for name in self._objects.list_names(""):
            if name not in known and not name.endswith(SECRET_SUFFIX):
                yield name, "not ours"
        for folder, depth in TREES.items():
            keys = self._objects.list_keys(f"trees/{folder}")
            for tree, _ in groupby("/".join(key.split("/")[: depth + 2]) for key in keys):
                prefix, _, token = tree.removeprefix("trees/").rpartition("/")
                if self._token(prefix) != token and not self._objects.exists(_pending(token)):
                    yield tree, "left of an upload or a removal, and nothing says so"

    # This machine

    def scratch(self) -> Path:
        return self._folder / "scratch"

    def free_bytes(self) -> int:
        return shutil.disk_usage(self._folder).free

    def remove_leftovers(self, now: float, age_s: float, in_use: Callable[[str], bool]) -> None:
        remove_old_files(self.scratch(), now, age_s, in_use, self.passed_over)
        begun_before = now - max(age_s, 2 * UPLOAD_S)
        for token in self._objects.list_names("pending"):
            note, data = self._objects.head(_pending(token)), self._objects.get(_pending(token))
            if note is None or data is None or note["LastModified"].timestamp() > begun_before:
                continue
            prefix = data.decode(errors="replace")
            if self._token(prefix) == token:
                self._objects.remove(_pending(token))
            else:
                self._clear(prefix, token)
        self._objects.abort_uploads(begun_before)


def _tree(prefix: str, token: str, name: str) -> str:
    return f"trees/{prefix}/{token}/{name}"


def _pending(token: str) -> str:
    return f"pending/{token}"


def _copy_name(placed: str, tag: str) -> str:
    return hashlib.sha256(f"{placed} {tag}".encode()).hexdigest()
