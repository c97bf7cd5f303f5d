"""The base of every value that crosses a process boundary."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Base of every value in the contract: immutable, and an unknown field is an error rather than a silent
    drop.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
