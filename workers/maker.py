"""What a worker renders with, as each attempt records it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from contract.card import MANIFEST
from contract.maker import Maker
from contract.version import installed_version
from workers.engines.engine import Engine


def checkpoint_sums(folder: Path) -> bytes | None:
    """The checkpoint's SHA256SUMS; None if it has none."""
    path = folder / MANIFEST
    return path.read_bytes() if path.is_file() else None


def maker_of(engine: Engine, folder: Path, ranks: int) -> Maker:
    """What `engine` renders with. Raises OSError."""
    sums = checkpoint_sums(folder)
    return Maker(
        version=installed_version(),
        libraries=dict(engine.libraries),
        device=engine.device_name,
        ranks=ranks,
        memory_mode=engine.memory_mode,
        fp8_compute=engine.fp8_compute,
        checkpoint_sha256=None if sums is None else hashlib.sha256(sums).hexdigest(),
    )
