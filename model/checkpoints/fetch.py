"""`cointeract fetch`: downloads the official files that are needed from the Hugging Face Hub, and checks
them.

The first run writes the commit of each revision to `fetch.json`, and later runs keep to those commits, so the
files of a folder always belong together. Requests are the hub library's own (endpoint, token, retries), but
partial files are kept: the library (2.x) drops them when it ends, and these files have up to 11 GB.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from httpx2 import HTTPError
from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import (
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

logger = logging.getLogger(__name__)

LOCK_FILE = "fetch.json"
DOWNLOAD_SLACK_BYTES = 2**30
"""Free disk space that must remain after everything is downloaded."""


class DownloadError(RuntimeError):
    """Files could not be downloaded. The message says what to do."""


@dataclass(frozen=True)
class Source:
    """A repository, and the files that are needed from it."""

    repo: str
    folder: str
    """Folder within the target folder."""
    required: tuple[str, ...]
    """Patterns of file names; each must match at least one file."""
    alternatives: tuple[str, ...] = ()
    """File names. The first one that the repository has is fetched."""


BASE = Source(
    "Wan-AI/Wan2.2-S2V-14B",
    "Wan2.2-S2V-14B",
    (
        "config.json",
        "diffusion_pytorch_model-*-of-*.safetensors",
        "models_t5_umt5-xxl-enc-bf16.pth",
        "Wan2.1_VAE.pth",
        "google/umt5-xxl/*",
    ),
)
COINTERACT = Source("georgexin/cointeract", "cointeract", ("checkpoint.safetensors",))
COINTERACT_POSE = Source("georgexin/cointeract", "cointeract", ("checkpoint_pose.safetensors",))
AUDIO_ENCODER = Source(
    "jonatasgrosman/wav2vec2-large-xlsr-53-chinese-zh-cn",
    "wav2vec2-large-xlsr-53-chinese-zh-cn",
    ("config.json", "preprocessor_config.json"),
    ("model.safetensors", "pytorch_model.bin"),
)


@dataclass(frozen=True)
class RemoteFile:
    """A file as the hub lists it."""

    name: str
    size: int
    sha256: str | None
    """Hash of a large file. Small files have `git_blob` instead."""
    git_blob: str | None


@dataclass(frozen=True)
class Snapshot:
    """The files of one repository at one commit."""

    repo: str
    revision: str
    """The revision that was asked for."""
    commit: str
    files: tuple[RemoteFile, ...]


@dataclass(frozen=True)
class FetchRequest:
    to: Path
    pose: bool = False
    """Fetch the pose checkpoint instead of the speech checkpoint."""
    revisions: Mapping[str, str] = field(default_factory=dict)
    """Commit, tag or branch by repository. By default what fetch.json holds, else main."""
    endpoint: str | None = None
    """Hub to use; by default HF_ENDPOINT or huggingface.co."""
    offline: bool = False
    """Do not use the network. HF_HUB_OFFLINE=1 means the same."""


@dataclass(frozen=True)
class Downloaded:
    """Where the files are: the arguments of `convert`."""

    base: Path
    cointeract: Path
    audio_encoder: Path
    downloaded_bytes: int


OnFile = Callable[[str, int, int], None]
"""Called with a file's name, its number from 1 and the number of files, before it is fetched or checked."""


def fetch(request: FetchRequest, on_file: OnFile | None = None) -> Downloaded:
    """Bring the official files to `request.to`. What is already there, whole or in part, is kept.

    Raises:
        DownloadError: a repository, revision or file is not there or not accessible, the disk has too little
            space, a file arrived damaged, there is no network, or files are missing while offline.
        OSError: the target cannot be written.
    """
    sources = (BASE, COINTERACT_POSE if request.pose else COINTERACT, AUDIO_ENCODER)
    offline = request.offline or constants.is_offline_mode()
    request.to.mkdir(parents=True, exist_ok=True)
    pins = _read_pins(request.to)
    snapshots = {}
    for source in sources:
        pinned = pins.get(source.repo)
        if offline:
            snapshots[source] = _pinned_or_refuse(source, pinned)
        else:
            snapshots[source] = _list_files(request, source.repo, pinned)
    wanted = [(source, file) for source in sources for file in _select(source, snapshots[source])]
    if not offline:
        _write_pins(request.to, pins | {snapshot.repo: snapshot for snapshot in snapshots.values()})
    missing = [(source, file) for source, file in wanted if not _is_whole(request.to / source.folder, file)]
    if offline and missing:
        names = ", ".join(f"{source.folder}/{file.name}" for source, file in missing)
        raise DownloadError(f"offline, and these files are not in {request.to}: {names}")
    _check_disk(request.to, [(request.to / source.folder, file) for source, file in missing])
    for number, (source, file) in enumerate(missing, 1):
        if on_file is not None:
            on_file(f"{source.repo}/{file.name}", number, len(missing))
        _download(request, snapshots[source], file, request.to / source.folder)
    return Downloaded(
        base=request.to / BASE.folder,
        cointeract=request.to / sources[1].folder / sources[1].required[0],
        audio_encoder=request.to / AUDIO_ENCODER.folder,
        downloaded_bytes=sum(file.size for _, file in missing),
    )


def provenance(path: Path) -> str:
    """A fetched file as "repository@commit/name"; any other file by its own name."""
    for source in (BASE, COINTERACT, AUDIO_ENCODER):
        for folder in path.absolute().parents:
            if folder.name == source.folder and (pinned := _read_pins(folder.parent).get(source.repo)):
                return f"{source.repo}@{pinned.commit}/{path.absolute().relative_to(folder)}"
    return path.name


def _list_files(request: FetchRequest, repo: str, pinned: Snapshot | None) -> Snapshot:
    asked = request.revisions.get(repo)
    if pinned is not None and asked in (None, pinned.revision, pinned.commit):
        return pinned
    revision = asked or "main"
    with _explained(repo, revision):
        info = HfApi(endpoint=request.endpoint).model_info(
            repo, revision=revision, files_metadata=True, timeout=30
        )
    files = tuple(
        RemoteFile(
            name=sibling.rfilename,
            size=sibling.size or 0,
            sha256=sibling.lfs.sha256 if sibling.lfs else None,
            git_blob=sibling.blob_id,
        )
        for sibling in info.siblings or ()
    )
    if not info.sha:
        raise DownloadError(f"{repo}: the hub named no commit for revision {revision}")
    return Snapshot(repo, revision, info.sha, files)


def _pinned_or_refuse(source: Source, pinned: Snapshot | None) -> Snapshot:
    if pinned is None:
        raise DownloadError(
            f"offline, and {source.repo} was never fetched here: run `cointeract fetch` online once"
        )
    return pinned


def _select(source: Source, snapshot: Snapshot) -> list[RemoteFile]:
    by_name = {file.name: file for file in snapshot.files}
    chosen: dict[str, RemoteFile] = {}
    for pattern in source.required:
        found = fnmatch.filter(by_name, pattern)
        if not found:
            raise DownloadError(f"{source.repo} at {snapshot.commit} has no file {pattern}")
        chosen |= {name: by_name[name] for name in sorted(found)}
    if source.alternatives:
        name = next((name for name in source.alternatives if name in by_name), None)
        if name is None:
            raise DownloadError(
                f"{source.repo} at {snapshot.commit} has none of {', '.join(source.alternatives)}"
            )
        chosen[name] = by_name[name]
    return list(chosen.values())


def _is_whole(folder: Path, file: RemoteFile) -> bool:
    """Whether a file is complete. It got its name only after its hash was checked, so its size is enough."""
    path = folder / file.name
    return path.is_file() and path.stat().st_size == file.size


def _partial(folder: Path, file: RemoteFile) -> Path:
    # The name holds the content's hash, so a partial file of another revision is never continued.
    identity = file.sha256 or file.git_blob or "unknown"
    return folder / f"{file.name}.{identity[:16]}.part"


def _check_disk(to: Path, missing: Sequence[tuple[Path, RemoteFile]]) -> None:
    needed = 0
    for folder, file in missing:
        partial = _partial(folder, file)
        needed += file.size - (partial.stat().st_size if partial.is_file() else 0)
    free = shutil.disk_usage(to).free
    if needed and free < needed + DOWNLOAD_SLACK_BYTES:
        raise DownloadError(
            f"{needed / 1e9:.1f} GB are still to be downloaded to {to} (and 1 GB must stay free), "
            f"but its disk has {free / 1e9:.1f} GB free: free some space or choose another folder with --to"
        )


def _download(request: FetchRequest, snapshot: Snapshot, file: RemoteFile, folder: Path) -> None:
    partial = _partial(folder, file)
    partial.parent.mkdir(parents=True, exist_ok=True)
    url = hf_hub_url(snapshot.repo, file.name, revision=snapshot.commit, endpoint=request.endpoint)
    with _explained(f"{snapshot.repo}/{file.name}", snapshot.commit):
        location = get_hf_file_metadata(url, endpoint=request.endpoint, retry_on_errors=True).location
        headers = build_hf_headers()
        if urlsplit(location).netloc != urlsplit(url).netloc:
            headers.pop("authorization", None)  # a signed address at another host, which the token is not for
        with partial.open("r+b" if partial.exists() else "w+b") as target:
            have = target.seek(0, os.SEEK_END)
            if have > file.size:
                have = target.truncate(0)
                target.seek(0)
            # An empty file needs no request, and a range after its end would be refused.
            if have < file.size:
                http_get(
                    location,
                    target,
                    resume_size=have,
                    headers=headers,
                    expected_size=file.size,
                    displayed_filename=file.name,
                )
            target.flush()
            os.fsync(target.fileno())
    damage = _damage(partial, file)
    if damage:
        partial.unlink()
        raise DownloadError(
            f"{snapshot.repo}/{file.name} arrived damaged ({damage}); it was removed, run fetch again"
        )
    partial.replace(folder / file.name)


def _damage(path: Path, file: RemoteFile) -> str | None:
    """What is wrong with a downloaded file; None if nothing is."""
    size = path.stat().st_size
    if size != file.size:
        return f"{size} bytes instead of {file.size}"
    with path.open("rb") as content:
        if file.sha256 is not None:
            digest, expected = hashlib.file_digest(content, "sha256").hexdigest(), file.sha256
        elif file.git_blob is not None:
            # git identifies a file by the SHA-1 of a header and the content. It serves integrity, not
            # security.
            blob = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
            blob.update(content.read())
            digest, expected = blob.hexdigest(), file.git_blob
        else:
            return None
    return None if digest == expected else f"hash {digest} instead of {expected}"


def _read_pins(to: Path) -> dict[str, Snapshot]:
    path = to / LOCK_FILE
    if not path.is_file():
        return {}
    try:
        stored: dict[str, dict[str, Any]] = json.loads(path.read_text())
        return {
            repo: Snapshot(
                repo=repo,
                revision=entry["revision"],
                commit=entry["commit"],
                files=tuple(RemoteFile(**file) for file in entry["files"]),
            )
            for repo, entry in stored.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DownloadError(f"{path} is damaged ({error}); remove it to pin the revisions anew") from error


def _write_pins(to: Path, pins: Mapping[str, Snapshot]) -> None:
    path = to / LOCK_FILE
    staged = path.with_suffix(".json.part")
    with staged.open("w") as file:
        json.dump({repo: asdict(snapshot) for repo, snapshot in sorted(pins.items())}, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    staged.replace(path)


@contextmanager
def _explained(what: str, revision: str) -> Iterator[None]:
    """Errors of the hub library → DownloadError with what to do."""
    token = "set HF_TOKEN to a token that may read it"
    try:
        yield
    except GatedRepoError as error:
        raise DownloadError(f"{what} is gated: accept its terms on its page and {token}") from error
    except RevisionNotFoundError as error:
        raise DownloadError(f"{what} has no revision {revision}") from error
    except RepositoryNotFoundError as error:
        raise DownloadError(f"{what} does not exist, or is private: {token}") from error
    except OfflineModeIsEnabled as error:
        raise DownloadError(f"{what}: offline (HF_HUB_OFFLINE is set)") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        hint = f": {token}" if status in (401, 403) else ""
        raise DownloadError(f"{what} at {revision}: the hub answered {status}{hint}") from error
    except (HTTPError, FileMetadataError) as error:
        raise DownloadError(
            f"{what}: no usable answer ({error}); check the network and HF_ENDPOINT"
        ) from error
    except OSError as error:
        if "Consistency check failed" not in str(error):
            raise
        raise DownloadError(f"{what}: the connection ended early; run fetch again, it continues") from error
