"""Readers of weight files, safetensors and torch's `.pth` and `.bin`: which tensor is at which byte of a
file.

Nothing is mapped into memory. Tensors are read in slices with plain reads, so converting 45 GB of files needs
memory for one slice. The system's figure for the process is then what it really needs: mapped pages would
count, too.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model.checkpoints.errors import CheckpointError, Fault, Problem, unreadable

_SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
_MAX_HEADER_BYTES = 100 * 2**20
"""Limit of the safetensors format itself."""

_MAX_OLD_TORCH_FILE = 2 * 2**30
"""torch files from before 1.6 cannot be read in slices, so only small ones are accepted."""


@dataclass(frozen=True)
class TensorInfo:
    """One tensor in a file. `stride` is set only for the rare non-contiguous tensor in a .pth."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    file: Path
    offset: int
    """Byte of the file at which the first element is."""
    stride: tuple[int, ...] | None = None
    in_memory: torch.Tensor | None = None

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize

    @property
    def span(self) -> int:
        """Elements of the storage between the first and the last element."""
        if self.stride is None or self.numel == 0:
            return self.numel
        return 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))

    def read(self) -> torch.Tensor:
        """The whole tensor, on the CPU, in memory of its own.

        Raises CheckpointError if the file is too short or holds numbers that are not finite.
        """
        if self.in_memory is not None:
            tensor = self.in_memory.contiguous()
        elif self.stride is not None:
            tensor = self._read_elements(0, self.span).as_strided(self.shape, self.stride).contiguous()
        else:
            tensor = self._read_elements(0, self.numel).view(self.shape)
        return self._checked(tensor)

    def read_rows(self, start: int, stop: int) -> torch.Tensor:
        """Rows start..stop of the first dimension: (stop - start, …)."""
        if self.in_memory is not None or self.stride is not None:
            return self.read()[start:stop]
        row = self.numel // self.shape[0]
        return self._checked(self._read_elements(start * row, stop * row).view(stop - start, *self.shape[1:]))

    def row_ranges(self, max_bytes: int) -> Iterator[tuple[int, int]]:
        """Ranges of rows that cover the tensor, each at most `max_bytes` in fp32, but at least one row."""
        if not self.shape:
            raise ValueError(f"{self.name} is a scalar and has no rows")
        row_bytes = 4 * self.numel // self.shape[0]
        step = max(1, max_bytes // row_bytes)
        for start in range(0, self.shape[0], step):
            yield start, min(start + step, self.shape[0])

    def _read_elements(self, start: int, stop: int) -> torch.Tensor:
        size = self.dtype.itemsize
        data = torch.empty((stop - start) * size, dtype=torch.uint8)
        view = data.numpy().data
        try:
            with self.file.open("rb", buffering=0) as file:
                file.seek(self.offset + start * size)
                done = 0
                while done < len(view):
                    count = file.readinto(view[done:])
                    if not count:
                        raise unreadable(self.file, f"the file ends inside tensor {self.name}: truncated?")
                    done += count
                if sys.platform == "linux":
                    # Without this the page cache would fill with files that are read only once.
                    position = self.offset + start * size
                    os.posix_fadvise(file.fileno(), position, len(view), os.POSIX_FADV_DONTNEED)
        except OSError as error:
            raise unreadable(self.file, f"reading tensor {self.name}: {error}") from error
        return data.view(self.dtype)

    def _checked(self, tensor: torch.Tensor) -> torch.Tensor:
        # aminmax takes one pass and no mask in memory, and shows even a single NaN or infinity.
        if not all(bool(bound.isfinite()) for bound in tensor.aminmax()):
            kind = "NaN" if bool(tensor.isnan().any()) else "infinity"
            detail = f"expected finite numbers, found {kind} in {self.file.name}"
            raise CheckpointError([Problem(Fault.NOT_FINITE, self.name, detail)])
        return tensor


TensorTable = dict[str, TensorInfo]


def read_table(*files: Path) -> TensorTable:
    """Names, shapes and places of all tensors of these files, read from their headers only.

    Raises:
        CheckpointError: a file is missing, empty, truncated or not a weight file, a pickle wants to run code,
            or a tensor is there twice, has no elements or holds no floating-point numbers.
    """
    table: TensorTable = {}
    problems: list[Problem] = []
    for file in files:
        for info in _read_file(file):
            if info.name in table:
                first = table[info.name].file.name
                problems.append(
                    Problem(Fault.DUPLICATE, info.name, f"expected once; in {first} and in {file.name}")
                )
            elif info.numel == 0:
                problems.append(
                    Problem(Fault.EMPTY, info.name, f"has shape {list(info.shape)} in {file.name}")
                )
            elif info.dtype not in _SAFETENSORS_DTYPES.values():
                detail = f"expected floating-point numbers, found {info.dtype} in {file.name}"
                problems.append(Problem(Fault.WRONG_TYPE, info.name, detail))
            table.setdefault(info.name, info)
    if problems:
        raise CheckpointError(problems)
    return table


def find_shards(folder: Path, stem: str = "diffusion_pytorch_model") -> list[Path]:
    """The safetensors files of a sharded model, in order: `stem.safetensors` or all of `stem-0000i-of-0000N`.

    Raises:
        CheckpointError: there is none, one of the N is missing, or shards of different N are mixed.
    """
    shards: dict[int, Path] = {}
    counts: set[int] = set()
    for path in sorted(folder.glob(f"{stem}*.safetensors")):
        match = re.fullmatch(re.escape(stem) + r"-(\d{5})-of-(\d{5})\.safetensors", path.name)
        if match:
            shards[int(match[1])] = path
            counts.add(int(match[2]))
    single = folder / f"{stem}.safetensors"
    if not shards and single.is_file():
        return [single]
    if not shards:
        raise unreadable(folder, f"expected {stem}-00001-of-0000N.safetensors … in this folder, found none")
    if len(counts) > 1 or single.is_file():
        names = sorted(path.name for path in folder.glob(f"{stem}*.safetensors"))
        raise unreadable(folder, f"expected one set of shards, found a mixture: {', '.join(names)}")
    (count,) = counts
    problems = [
        Problem(
            Fault.UNREADABLE, f"{stem}-{n:05d}-of-{count:05d}.safetensors", f"expected in {folder}, not there"
        )
        for n in range(1, count + 1)
        if n not in shards
    ]
    if problems or len(shards) != count:
        raise CheckpointError(
            problems or [Problem(Fault.UNREADABLE, str(folder), f"more shards than {count}")]
        )
    return [shards[n] for n in sorted(shards)]


LFS_ADVICE = "a Git LFS pointer, not the weights: run `git lfs pull`, or fetch them with `cointeract fetch`"


def is_lfs_pointer(path: Path) -> bool:
    """Whether a clone without Git LFS left its note in place of the file."""
    with path.open("rb") as file:
        return file.read(64).startswith(b"version https://git-lfs.github.com/spec/")


def _read_file(path: Path) -> list[TensorInfo]:
    if not path.is_file():
        raise unreadable(path, "expected a file, there is none")
    if path.stat().st_size == 0:
        raise unreadable(path, "the file is empty")
    if is_lfs_pointer(path):
        raise unreadable(path, LFS_ADVICE)
    return _safetensors_table(path) if path.suffix == ".safetensors" else _torch_table(path)


# safetensors: 8 bytes of header length, a JSON header, the data. We parse it ourselves because the library
# only gives tensors as mapped memory, and silently takes the last of two equal names.


def _safetensors_table(path: Path) -> list[TensorInfo]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
            raise unreadable(path, f"not a safetensors file, or truncated: {size} bytes, header of {length}")
        raw = file.read(length)
    try:
        header = json.loads(raw, object_pairs_hook=_unique_names)
    except _RepeatedName as error:
        detail = f"expected once, is twice in the header of {path.name}"
        raise CheckpointError([Problem(Fault.DUPLICATE, str(error), detail)]) from error
    except ValueError as error:
        raise unreadable(path, f"not a safetensors file: its header is no JSON ({error})") from error
    if not isinstance(header, dict):
        raise unreadable(path, "not a safetensors file: its header is no JSON object")
    header.pop("__metadata__", None)
    return [_safetensors_entry(path, size, 8 + length, name, entry) for name, entry in header.items()]


def _safetensors_entry(path: Path, size: int, data_start: int, name: str, entry: Any) -> TensorInfo:
    try:
        shape = tuple(int(n) for n in entry["shape"])
        begin, end = (int(n) for n in entry["data_offsets"])
        dtype_name = str(entry["dtype"])
    except (KeyError, TypeError, ValueError) as error:
        raise unreadable(path, f"header entry of tensor {name} is malformed") from error
    if dtype_name not in _SAFETENSORS_DTYPES:
        detail = f"expected floating-point numbers, found {dtype_name} in {path.name}"
        raise CheckpointError([Problem(Fault.WRONG_TYPE, name, detail)])
    info = TensorInfo(name, shape, _SAFETENSORS_DTYPES[dtype_name], path, data_start + begin)
    if begin < 0 or end - begin != info.nbytes:
        raise unreadable(
            path, f"tensor {name} {list(shape)} should take {info.nbytes} bytes, has {end - begin}"
        )
    if data_start + end > size:
        raise unreadable(
            path, f"truncated: tensor {name} ends at byte {data_start + end}, the file at byte {size}"
        )
    return info


class _RepeatedName(ValueError):
    pass


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique: dict[str, Any] = {}
    for name, value in pairs:
        if name in unique:
            raise _RepeatedName(name)
        unique[name] = value
    return unique


# torch files: a zip archive with one uncompressed record per storage. Loading it to the meta device unpickles
# names and shapes (weights_only, so no code is run) and leaves the byte offset on each storage.


def _torch_table(path: Path) -> list[TensorInfo]:
    sliced = zipfile.is_zipfile(path)
    if not sliced and path.stat().st_size > _MAX_OLD_TORCH_FILE:
        raise unreadable(
            path, "expected a torch file (zip archive): truncated, or written by torch before 1.6"
        )
    try:
        state = torch.load(path, map_location="meta" if sliced else "cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted:
            detail = f"refused: it holds {wanted[1]}, and loading more than tensors could run code"
            raise unreadable(path, detail) from error
        raise unreadable(path, "not a torch file, or damaged") from error
    except (RuntimeError, ValueError, EOFError, OSError, KeyError, IndexError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].split(" This is ")[0]
        raise unreadable(path, f"not a torch file, or truncated: {reason}") from error
    if not isinstance(state, Mapping):
        raise unreadable(path, f"expected a mapping of names to tensors, found {type(state).__name__}")
    size = path.stat().st_size
    return [_torch_entry(path, size, str(name), value, sliced) for name, value in state.items()]


def _torch_entry(path: Path, size: int, name: str, value: Any, sliced: bool) -> TensorInfo:
    if not isinstance(value, torch.Tensor):
        detail = f"expected a tensor, found {type(value).__name__} in {path.name}"
        raise CheckpointError([Problem(Fault.WRONG_TYPE, name, detail)])
    shape = tuple(value.shape)
    if not sliced:
        return TensorInfo(name, shape, value.dtype, path, 0, in_memory=value.detach())
    storage_at: int = getattr(value.untyped_storage(), "_checkpoint_offset")  # noqa: B009 (set by torch.load, untyped)
    offset = storage_at + int(value.storage_offset()) * value.dtype.itemsize
    stride = None if value.is_contiguous() else tuple(value.stride())
    info = TensorInfo(name, shape, value.dtype, path, offset, stride)
    if offset + info.span * info.dtype.itemsize > size:
        raise unreadable(path, f"truncated: tensor {name} ends behind the end of the file")
    return info
