"""Writes a checkpoint folder completely or not at all: streamed shards of safetensors, and their SHA-256."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from contract.card import MANIFEST

MAX_SHARD_BYTES = 5 * 10**9

_DTYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.uint8: "U8"}
_LOCK = ".lock"
_HASH_BLOCK = 16 * 2**20


@dataclass(frozen=True)
class OutputTensor:
    """A tensor to write. `slices` yields its rows in order, already in `dtype`."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    slices: Callable[[], Iterator[torch.Tensor]]

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass
class CheckpointFolder:
    """A folder that is being written. Its files are on disk (fsync) and in the manifest."""

    path: Path
    digests: dict[str, str] = field(default_factory=dict)
    """SHA-256 by path relative to the folder."""

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        self.write_bytes(name, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())

    def write_bytes(self, name: str, data: bytes) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self.digests[name] = hashlib.sha256(data).hexdigest()

    def write_tensors(
        self,
        stem: str,
        tensors: Sequence[OutputTensor],
        on_bytes: Callable[[int], None],
        max_shard_bytes: int = MAX_SHARD_BYTES,
    ) -> None:
        """Write `stem.safetensors`, or shards `stem-0000i-of-0000N` and their index if they exceed one shard.

        Args:
            stem: path relative to the folder, e.g. "transformer/diffusion_pytorch_model".
            tensors: in the order of the files.
            on_bytes: called with the bytes of each slice written.
        """
        shards = _cut(tensors, max_shard_bytes)
        weight_map: dict[str, str] = {}
        for number, shard in enumerate(shards, 1):
            name = (
                f"{stem}.safetensors"
                if len(shards) == 1
                else f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
            )
            self._write_shard(name, shard, on_bytes)
            weight_map |= {tensor.name: Path(name).name for tensor in shard}
        if len(shards) > 1:
            size = sum(tensor.nbytes for tensor in tensors)
            self.write_json(
                f"{stem}.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": weight_map}
            )

    def _write_shard(
        self, name: str, tensors: Sequence[OutputTensor], on_bytes: Callable[[int], None]
    ) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with path.open("wb") as file:
            header = _header(tensors)
            file.write(header)
            digest.update(header)
            for tensor in tensors:
                written = 0
                for rows in tensor.slices():
                    if rows.dtype != tensor.dtype:
                        raise TypeError(f"{tensor.name}: slices of {rows.dtype}, announced {tensor.dtype}")
                    data = rows.contiguous().view(-1).view(torch.uint8).numpy().data
                    file.write(data)
                    digest.update(data)
                    written += len(data)
                    on_bytes(len(data))
                if written != tensor.nbytes:
                    raise ValueError(f"{tensor.name}: {written} bytes, announced {tensor.nbytes}")
            file.flush()
            os.fsync(file.fileno())
        self.digests[name] = digest.hexdigest()

    def adopt(self, name: str) -> None:
        """Fsync and list a file that a library wrote into the folder."""
        path = self.path / name
        with path.open("rb+") as file:
            self.digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())


@contextmanager
def checkpoint_folder(target: Path) -> Iterator[CheckpointFolder]:
    """A folder that appears at `target` complete, or not at all.

    It is written next to the target under a hidden name, with every file fsynced and the manifest last, and
    then renamed. What an earlier, killed run has left is removed first.

    Raises:
        FileExistsError: the target exists and is not an empty folder.
        BlockingIOError: another process is writing the same target.
    """
    target = target.absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} exists; choose another folder or remove it first")
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.parent / f".{target.name}.partial"
    staging.mkdir(exist_ok=True)
    with (staging / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(error.errno, f"another process is writing {target}") from error
        _clear(staging)
        folder = CheckpointFolder(staging)
        try:
            yield folder
            listing = "".join(f"{digest}  {name}\n" for name, digest in sorted(folder.digests.items()))
            folder.write_bytes(MANIFEST, listing.encode())
            _refuse_unlisted(folder)
            (staging / _LOCK).unlink()
            for directory in [staging, *(path for path in staging.rglob("*") if path.is_dir())]:
                _fsync_directory(directory)
            staging.rename(target)  # replaces an empty folder; fails on any other
            _fsync_directory(target.parent)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise


def verify_manifest(folder: Path) -> list[str]:
    """Names of files that are missing or differ from SHA256SUMS; empty if the folder is intact.

    Raises:
        FileNotFoundError: the folder has no manifest.
    """
    wrong = []
    for line in (folder / MANIFEST).read_text().splitlines():
        digest, _, name = line.partition("  ")
        path = folder / name
        if not path.is_file() or sha256_of(path) != digest:
            wrong.append(name)
    return wrong


def sha256_of(path: Path, stop: threading.Event | None = None) -> str:
    """SHA-256 of a file; empty if `stop` is set before it is known."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(_HASH_BLOCK):
            digest.update(block)
            if stop is not None and stop.is_set():
                return ""
    return digest.hexdigest()


def _cut(tensors: Sequence[OutputTensor], max_bytes: int) -> list[list[OutputTensor]]:
    shards: list[list[OutputTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.nbytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    return shards


def _header(tensors: Sequence[OutputTensor]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start, end = end, end + tensor.nbytes
        dtype = _DTYPE_NAMES[tensor.dtype]
        entries[tensor.name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    raw = json.dumps(entries, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)  # the format wants the data aligned
    return len(raw).to_bytes(8, "little") + raw


def _clear(staging: Path) -> None:
    for path in staging.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != _LOCK:
            path.unlink()


def _refuse_unlisted(folder: CheckpointFolder) -> None:
    files = {str(path.relative_to(folder.path)) for path in folder.path.rglob("*") if path.is_file()}
    unlisted = files - folder.digests.keys() - {_LOCK}
    if unlisted:
        raise RuntimeError(f"files outside the manifest: {sorted(unlisted)}")


def _fsync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
