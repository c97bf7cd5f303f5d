"""The bucket that `cointeract chaos --storage` puts jobs in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from uuid import uuid4


@dataclass(frozen=True)
class RemoteStorage:
    """A bucket, and how to make it fail."""

    url: str
    environment: Mapping[str, str] = field(default_factory=dict)
    """What a process needs to find it."""
    fail: Callable[[float], None] | None = None
    """Makes it fail for so many seconds. None for a bucket that is not ours."""

    @staticmethod
    def at(url: str) -> RemoteStorage:
        """A new prefix in a bucket of yours, found by boto3's standard chain. It is not removed."""
        return RemoteStorage(f"{url.rstrip('/')}/chaos-{uuid4().hex[:8]}")
