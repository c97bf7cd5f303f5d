"""The secrets that sign webhooks: the server's, or a key's own.

Whoever knows a secret can forge messages to all who trust it. So where several keys share a server, each
should make a secret of its own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from contract.frozen import Frozen
from contract.job import utcnow
from jobs.artifacts import ArtifactStore
from jobs.record_kinds import RecordKind
from server.delivery.standard_webhooks import new_secret

_FOLDER: Final = "webhook-secrets"
OLD_SIGNS_TOO: Final = timedelta(days=1)


class OwnSecret(Frozen):
    """The secret of one key. For a day after a change, the secret before it signs as well."""

    secret: str
    since: datetime
    before: str | None = None


SECRET_RECORDS: Final = RecordKind(
    _FOLDER, re.compile(r"[0-9a-z]+\.json"), lambda name, data: OwnSecret.stored(data)
)


@dataclass(frozen=True)
class SigningSecrets:
    """All secrets of one store."""

    store: ArtifactStore
    of_server: str

    def own(self, owner: str) -> OwnSecret | None:
        """The secret of a key that has made one. Raises OSError, and ValueError if it cannot be read."""
        data = self.store.read(_path(owner))
        return None if data is None else OwnSecret.stored(data)

    def renew(self, owner: str) -> OwnSecret:
        """Make a secret for a key, or replace it. Raises OSError."""
        known = self.own(owner)
        made = OwnSecret(secret=new_secret(), since=utcnow(), before=known.secret if known else None)
        self.store.write(_path(owner), made.model_dump_json().encode())
        return made

    def signing(self, owner: str) -> list[str]:
        """The secrets that sign a key's webhooks, the newest first. Raises OSError, ValueError."""
        own = self.own(owner)
        if own is None:
            return [self.of_server]
        if own.before is None or utcnow() - own.since > OLD_SIGNS_TOO:
            return [own.secret]
        return [own.secret, own.before]


def _path(owner: str) -> str:
    return f"{_FOLDER}/{owner}.json"
