"""Signing as Standard Webhooks say (standardwebhooks.com): a secret, and three headers for each message."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Sequence
from typing import Final

from jobs.artifacts import ArtifactStore

_SECRET: Final = "webhook.secret"
_PREFIX: Final = "whsec_"


def webhook_secret(store: ArtifactStore, configured: str | None) -> str:
    """The configured secret, or one that is made once and kept in storage. Raises ValueError if malformed."""
    if configured is not None:
        _key(configured)
        return configured
    if (kept := store.read(_SECRET)) is None:
        store.create(_SECRET, new_secret().encode())
        kept = store.read(_SECRET)
    assert kept is not None
    return kept.decode()


def new_secret() -> str:
    """A secret that nobody knows."""
    return _PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def _key(secret: str) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except binascii.Error as error:
        raise ValueError("COINTERACT_WEBHOOK_SECRET must be whsec_ followed by base64") from error
    if not secret.startswith(_PREFIX) or len(key) < 24:
        raise ValueError("COINTERACT_WEBHOOK_SECRET must be whsec_ followed by base64 of at least 24 bytes")
    return key


def signed_headers(keys: Sequence[str], message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The three headers of the standard; for each key a signature: HMAC-SHA256 of `id.timestamp.body`."""
    content = f"{message_id}.{timestamp}.".encode() + body
    signatures = [hmac.new(_key(secret), content, hashlib.sha256).digest() for secret in keys]
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{base64.b64encode(each).decode()}" for each in signatures),
    }
