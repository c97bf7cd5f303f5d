"""Short-lived signed URLs, for players that cannot send a key: a path, a time and an HMAC of both."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from datetime import UTC, datetime

from jobs.artifacts import ArtifactStore

_SECRET = "url-signing.secret"


class UrlSigner:
    """Signs with a secret in the store, so that all servers of one store accept each other's URLs."""

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store

    def _key(self) -> bytes:
        secret = self._store.read(_SECRET)
        if secret is None:
            self._store.create(_SECRET, secrets.token_bytes(32))
            secret = self._store.read(_SECRET)
        if secret is None:
            raise RuntimeError("the store does not keep the signing secret")
        return secret

    def _signature(self, path: str, expires: int) -> str:
        return hmac.new(self._key(), f"{expires}:{path}".encode(), hashlib.sha256).hexdigest()

    def sign(self, path: str, expires_at: datetime) -> str:
        """A URL that gives access to `path` until `expires_at`."""
        expires = int(expires_at.timestamp())
        return f"{path}?expires={expires}&signature={self._signature(path, expires)}"

    def sign_until(self, path: str, expires: str) -> str:
        """A URL that gives access to `path` until `expires`, the expiry of another signed URL."""
        return self.sign(path, datetime.fromtimestamp(int(expires), UTC))

    def verify(self, path: str, expires: str, signature: str) -> bool:
        """Whether these two query parameters give access to `path` now."""
        if not (expires.isascii() and expires.isdecimal() and len(expires) <= 12 and signature.isascii()):
            return False
        expected = self._signature(path, int(expires))
        return hmac.compare_digest(expected, signature) and time.time() < int(expires)

    @staticmethod
    def in_seconds(seconds: int) -> datetime:
        """The moment so many seconds from now."""
        return datetime.fromtimestamp(int(time.time()) + seconds, UTC)
