"""Opens the store that the settings name."""

from __future__ import annotations

from urllib.parse import urlsplit

from contract.settings import Settings
from jobs.artifacts import ArtifactStore, FolderStore


class StoreRefusedError(RuntimeError):
    """The store cannot be used; the message says what to change."""


def open_store(settings: Settings, *, probe: bool = True) -> ArtifactStore:
    """The store of the settings. With `probe`, a remote one is asked whether it has what we need.

    Raises StoreRefusedError, and OSError if the store does not answer or its folder cannot be made.
    """
    if settings.storage_url is None:
        return FolderStore(settings.storage_dir)
    try:
        from jobs.s3_objects import S3Objects
        from jobs.s3_store import S3Store
    except ImportError as error:
        raise StoreRefusedError(
            f"COINTERACT_STORAGE_URL needs the extra packages of S3 ({error}): pip install "
            "'cointeract-server[s3]'."
        ) from error
    url = urlsplit(settings.storage_url)
    objects = S3Objects(url.netloc, url.path.strip("/"))
    store = S3Store(
        objects, settings.remote_dir, settings.storage_cache_bytes, signs_urls=settings.storage_redirects
    )
    why = store.why_unfit() if probe else None
    if why is not None:
        raise StoreRefusedError(f"COINTERACT_STORAGE_URL={settings.storage_url}: {why}")
    return store
