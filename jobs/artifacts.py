"""The store of files in which jobs live. It gives two guarantees, and everything else is built on them.

1. A reader sees a file whole or not at all, and a file that was seen survives a power cut (write, fsync,
   rename or link, fsync the folder).
2. `create` makes a file exactly once, however many processes try at the same time.

Nobody but us can read it: folders have mode 0700 and files that are written here 0600, whatever the umask.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import Protocol

from jobs.passed_over import PassedOver

log = logging.getLogger(__name__)


STORAGE_AWAY = frozenset(
    {
        *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE),
        *(errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENXIO, errno.ENODEV, errno.ESHUTDOWN),
    }
)
"""Errors that are about the storage and not about its user: full, read-only, cut off, broken."""

NOT_THERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
SCRATCH_AGE_S = 3600.0
"""Half-written files that were not touched for so long belong to nobody. An upload takes minutes, and an
attempt, which may take longer, is known by its folder's name.
"""
SECRET_SUFFIX = ".secret"
"""How the names of files end that lie in the store itself and are for nobody else."""
LARGEST_READ = 64 * 2**20
"""Bytes of the largest file that `read` takes into memory. Our own files are far smaller."""


class NoFileOfOurs(OSError):
    """The thing under a key is a folder, a pipe or a device, is far too large, or cannot be read."""


class ArtifactStore(Protocol):
    """A store of files. Keys are relative POSIX paths that we choose ("jobs/job_…/journal/000000.json").

    Whatever reads or writes may raise OSError; with an errno of `STORAGE_AWAY` it is worth another try later.
    """

    passed_over: PassedOver
    """Things in the store that were left alone."""
    is_remote: bool
    """Whether each look crosses a network. Then only threads may look, never an event loop."""

    def create(self, key: str, data: bytes, *, durable: bool = True) -> bool:
        """Create `key` with `data`, durably. False if it exists already, or its folder is gone.

        With `durable` false a power cut may lose the file until an `adopt_folder` names it in `after`. If it
        does not, the file has its data.
        """

    def write(self, key: str, data: bytes) -> None:
        """Create or replace `key`, durably. For files that belong to no job, such as checkpoint cards."""

    def read(self, key: str) -> bytes | None:
        """The whole content, or None if there is no such key. Raises NoFileOfOurs."""

    def digest(self, key: str) -> tuple[str, int] | None:
        """SHA-256 and number of bytes of the whole content, which may be of any size and of which no copy is
        kept; None if there is no such key. Raises NoFileOfOurs.
        """

    def exists(self, key: str) -> bool:
        """Whether there is such a key. Cheaper than reading it."""

    def written_at(self, key: str) -> float | None:
        """When the content was written, in Unix time by the storage's own clock; None if there is no such
        key.
        """

    def now(self) -> float:
        """Unix time by the storage's own clock."""

    def check(self) -> None:
        """Write and read something. Raises OSError if that does not work."""

    def remove(self, key: str) -> None:
        """Remove one file. No error if there is none."""

    def put_file(self, source: Path, key: str) -> bool:
        """Move the local file `source` to `key`, durably. False if the folder is gone.

        A file that is there is replaced.
        """

    def local_path(self, key: str) -> Path:
        """A local file with the content of `key`, to be opened at once: a remote store downloads it, and
        keeps it for a while. Raises FileNotFoundError.
        """

    def fetch(self, key: str, target: Path) -> None:
        """Make the local file `target` with the content of `key`. It stays when the key is removed.

        It takes no space of its own where the file system has hard links. Raises FileNotFoundError.
        """

    def share(self, key: str, target: Path) -> None:
        """Give the file `target` of a folder that `adopt_folder` will take the content of `key`, without a
        copy where that can be had. Nobody but `adopt_folder` may look for it. Raises FileNotFoundError.
        """

    def signed_url(self, key: str, seconds: int, media_type: str, disposition: str) -> str | None:
        """A URL from which anybody may download `key` for that long; None if this store gives none.

        Raises FileNotFoundError.
        """

    def adopt_folder(self, source: Path, prefix: str, *, after: Sequence[str] = ()) -> None:
        """Move a local folder to `prefix`, durably and in one step: nobody sees half of it.

        The keys in `after` were created with `durable` false. They become durable before the folder appears.

        Raises FileExistsError if `prefix` exists: of many racing calls exactly one succeeds.
        """

    def list_names(self, prefix: str) -> list[str]:
        """Names directly under `prefix`, sorted."""

    def remove_folder(self, prefix: str) -> None:
        """Remove everything under `prefix` in one step. No error if there is nothing."""

    def unreachable(self) -> Iterator[tuple[str, str]]:
        """Each thing that lies in the store and under no key of ours: its place, and what it is."""

    def scratch(self) -> Path:
        """A local folder for unfinished files. What stays in it may be removed at any restart."""

    def free_bytes(self) -> int:
        """Bytes left for new files; those of the local disk, if the store itself has no end."""

    def remove_leftovers(self, now: float, age_s: float, in_use: Callable[[str], bool]) -> None:
        """Delete what dead processes left unfinished: what was untouched for `age_s` at `now`, but nothing in
        scratch that is `in_use` by its name, and nothing that we would not have made.
        """


def fsync_path(path: Path) -> None:
    """Make a file's content, or a folder's list of names, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def link_or_copy(source: Path, target: Path) -> None:
    """Make the file `target` with the content of `source`, which is replaced some day but never changed.

    Raises FileNotFoundError, FileExistsError.
    """
    try:
        os.link(source, target)
    except (FileNotFoundError, FileExistsError):
        raise
    except OSError:  # no hard links here, or too many of this file
        with source.open("rb") as original, target.open("xb") as copy:
            os.fchmod(copy.fileno(), 0o600)
            shutil.copyfileobj(original, copy, 2**20)


def make_private_folder(folder: Path) -> None:
    """Create a folder and its missing parents, closed to other users whatever the umask."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        path.chmod(0o700)


def exposed_paths(root: Path) -> list[Path]:
    """Folders and secrets of the store in `root` that other users may read or change."""
    folders = [root, *(root / name for name in FOLDERS)]
    secret_files = [*root.glob(f"*{SECRET_SUFFIX}"), *(root / "keys").glob("*.json")]
    return [path for path in (*folders, *secret_files) if path.exists() and path.stat().st_mode & 0o077]


def remove_old_files(
    folder: Path, now: float, age_s: float, in_use: Callable[[str], bool], passed_over: PassedOver
) -> None:
    """Delete what lies in `folder` and was untouched for `age_s` at `now`, except what is `in_use` by its
    name, and what we would not have made.
    """
    for path in folder.iterdir():
        if path.name.startswith(".") or path.name == "lost+found":
            passed_over.note("stray", f"{folder.name}/{path.name}", "not ours")
            continue
        try:
            newest = max(item.lstat().st_mtime for item in (path, *path.rglob("*")))
            if now - newest > age_s and not in_use(path.name):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        except FileNotFoundError:
            continue  # somebody else was faster
        except OSError as error:
            passed_over.note("leftover", f"{folder.name}/{path.name}", error)


SYNCS_AT_ONCE = 16
FOLDERS = (
    "jobs",
    "files",
    "done",
    "checkpoints",
    "tokenizers",
    "sums",
    "keys",
    "idempotency",
    "usage",
    "webhooks",
    "webhook-secrets",
    "farewells",
    "scratch",
    "trash",
)


class FolderStore:
    """An `ArtifactStore` in a local folder, or on a network file system with hard links and atomic rename."""

    is_remote = False

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self._root_name = str(self.root)
        self.passed_over = PassedOver()
        self._syncing = ThreadPoolExecutor(SYNCS_AT_ONCE, thread_name_prefix="fsync")
        for name in FOLDERS:
            make_private_folder(self.root / name)
        self._mend_modes()

    def _mend_modes(self) -> None:
        """Close to other users what an older version, or a person, has left open."""
        for path in exposed_paths(self.root):
            try:
                path.chmod(0o700 if path.is_dir() else 0o600)
            except OSError as error:
                log.error("other users may read %s, which cannot be changed: %s", path, error.strerror)

    def _name(self, key: str) -> str:
        """The path of a key. Text alone: lists look at hundreds, and a `Path` takes longer than the look."""
        if key.startswith("/") or ".." in key.split("/"):
            raise ValueError(f"key leaves the store: {key!r}")
        return f"{self._root_name}/{key}"

    def _path(self, key: str) -> Path:
        return Path(self._name(key))

    def _stat(self, key: str) -> os.stat_result | None:
        """None if there is no such key. Raises OSError if the storage does not answer."""
        try:
            return os.stat(self._name(key))  # noqa: PTH116
        except OSError as error:
            if error.errno in NOT_THERE:
                return None
            raise

    def _must_be_there(self) -> None:
        """Raise OSError if the store itself is gone.

        Callers that find nothing ask here. A network file system that is not mounted must not pass for a
        store from which everything was removed.
        """
        if self._stat("scratch") is None:
            raise OSError(errno.ENODEV, "the storage is not there", str(self.root))

    @contextmanager
    def _written(self, data: bytes) -> Iterator[Path]:
        """A temporary file that holds `data`, durably.

        It is removed at the end even after an error, because a full disk must not fill further.
        """
        temporary = self.scratch() / f"write-{secrets.token_hex(8)}"
        try:
            self._must_be_there()
            with temporary.open("xb") as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    def create(self, key: str, data: bytes, *, durable: bool = True) -> bool:
        target = self._path(key)
        # Even if the name need not last yet: a name that does, without its data, would be worse than none.
        with self._written(data) as temporary:
            try:
                # Unlike rename, link refuses to replace a file: the kernel decides every race.
                os.link(temporary, target)
                if durable:
                    fsync_path(target.parent)
            except FileExistsError:
                return False
            except FileNotFoundError:
                self._must_be_there()
                return False
        return True

    def write(self, key: str, data: bytes) -> None:
        target = self._path(key)
        with self._written(data) as temporary:
            temporary.rename(target)
        fsync_path(target.parent)

    def remove(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    @contextmanager
    def _opened(self, key: str) -> Iterator[BufferedReader | None]:
        """The plain file under a key; None if there is no such key. Raises NoFileOfOurs."""
        try:
            # Without O_NONBLOCK a pipe would hold us until somebody writes to it.
            descriptor = os.open(self._path(key), os.O_RDONLY | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError):
            self._must_be_there()
            yield None
            return
        except PermissionError as error:
            raise NoFileOfOurs(error.errno, error.strerror, key) from error
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise NoFileOfOurs(errno.EINVAL, "not a plain file", key)
            with open(descriptor, "rb", closefd=False) as file:
                yield file
        finally:
            os.close(descriptor)

    def read(self, key: str) -> bytes | None:
        with self._opened(key) as file:
            if file is None:
                return None
            if os.fstat(file.fileno()).st_size > LARGEST_READ:
                raise NoFileOfOurs(errno.EFBIG, f"larger than {LARGEST_READ} bytes", key)
            return b"".join(iter(partial(file.read, 2**20), b""))

    def digest(self, key: str) -> tuple[str, int] | None:
        with self._opened(key) as file:
            if file is None:
                return None
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return digest, file.tell()

    def exists(self, key: str) -> bool:
        if self._stat(key) is not None:
            return True
        self._must_be_there()
        return False

    def written_at(self, key: str) -> float | None:
        found = self._stat(key)
        return None if found is None else found.st_mtime

    def now(self) -> float:
        with self._written(b"") as probe:
            return probe.stat().st_mtime

    def check(self) -> None:
        with self._written(b"?") as probe:
            probe.read_bytes()

    def put_file(self, source: Path, key: str) -> bool:
        target = self._path(key)
        try:
            if not target.exists() or source.exists():  # else an earlier call failed behind the rename
                fsync_path(source)
                source.rename(target)
            fsync_path(target.parent)
        except FileNotFoundError:
            self._must_be_there()
            return False
        return True

    def local_path(self, key: str) -> Path:
        path = self._path(key)
        if not path.exists():
            self._must_be_there()
            raise FileNotFoundError(key)
        return path

    def fetch(self, key: str, target: Path) -> None:
        link_or_copy(self.local_path(key), target)

    def share(self, key: str, target: Path) -> None:
        self.fetch(key, target)

    def signed_url(self, key: str, seconds: int, media_type: str, disposition: str) -> str | None:
        return None

    def adopt_folder(self, source: Path, prefix: str, *, after: Sequence[str] = ()) -> None:
        target = self._path(prefix)
        paths = [Path(folder) / name for folder, _, names in os.walk(source) for name in (*names, "")]
        paths += [path for key in after for path in (self._path(key), self._path(key).parent)]
        # Together: a file system gathers waiting syncs into one commit (7 ms instead of 27).
        list(self._syncing.map(fsync_path, paths))
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            source.rename(target)
        except OSError as error:
            # rename replaces an empty folder but never a full one: the kernel decides this race, too.
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise FileExistsError(prefix) from error
            raise
        fsync_path(target.parent)

    def list_names(self, prefix: str) -> list[str]:
        try:
            return sorted(os.listdir(self._path(prefix)))
        except (FileNotFoundError, NotADirectoryError):
            self._must_be_there()
            return []

    def remove_folder(self, prefix: str) -> None:
        grave = self.root / "trash" / secrets.token_hex(8)
        try:
            self._path(prefix).rename(grave)
        except FileNotFoundError:
            return
        shutil.rmtree(grave, ignore_errors=True)  # remove_leftovers tries again with what resists

    def unreachable(self) -> Iterator[tuple[str, str]]:
        for name in self.list_names(""):
            if name not in FOLDERS and not name.endswith(SECRET_SUFFIX):
                yield name, "not ours"

    def scratch(self) -> Path:
        return self.root / "scratch"

    def free_bytes(self) -> int:
        return shutil.disk_usage(self.root).free

    def remove_leftovers(self, now: float, age_s: float, in_use: Callable[[str], bool]) -> None:
        remove_old_files(self.scratch(), now, age_s, in_use, self.passed_over)
        remove_old_files(self.root / "trash", now, age_s, lambda name: False, self.passed_over)
