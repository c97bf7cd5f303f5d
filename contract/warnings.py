"""What a submitter should know about an accepted request: the one way to note what refuses nothing."""

from __future__ import annotations

from enum import StrEnum

from contract.frozen import Frozen


class WarningCode(StrEnum):
    """Every code a warning may have; docs/api.md says what they mean and a test keeps the two equal."""

    SPEECH_SILENT = "speech_silent"
    SPEECH_QUIET = "speech_quiet"
    SPEECH_MAYBE_CUT = "speech_maybe_cut"


class JobWarning(Frozen):
    """Something about the request is probably not as meant, or was changed.

    `code` is one of `WarningCode` (a text, so that a newer server's journal can be read), `message` is for
    people, `field` names the field to look at.
    """

    code: str
    message: str
    field: str | None = None
