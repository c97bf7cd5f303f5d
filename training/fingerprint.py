"""Names for encoded clips made of what they were encoded from, so that changed data are encoded anew."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from model.checkpoints.writer import sha256_of

ENCODERS = ("vae", "text_encoder", "tokenizer", "audio_encoder", "feature_extractor")
FORMAT = "1"
"""Change it whenever clips are encoded in another way."""


def encoders_digest(base: Path) -> str:
    """A hash of the parts of a checkpoint folder that encode clips.

    Raises:
        FileNotFoundError: a part is missing.
    """
    digest = sha256(FORMAT.encode())
    for part in ENCODERS:
        if not (base / part).is_dir():
            raise FileNotFoundError(f"{base} is not a checkpoint folder: it has no {part}")
        for path in sorted(path for path in (base / part).rglob("*") if path.is_file()):
            digest.update(f"{path.relative_to(base).as_posix()} {sha256_of(path)}\n".encode())
    return digest.hexdigest()


def clip_name(encoders: str, row: str) -> str:
    """The name of a row's encoded clip, from both hashes."""
    return sha256(f"{encoders} {row}".encode()).hexdigest()[:32]
