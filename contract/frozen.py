"""The base of every value that crosses a process boundary."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Base of every value in the contract: immutable, and an unknown field is an error rather than a silent
    drop.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def stored(cls, data: bytes) -> Self:
        """The value that another version of this program may have written: fields it does not know are
        dropped, here and in all values inside, so that a rollback can read what the newer version wrote.

        Raises ValueError.
        """
        return cls.model_validate_json(data, extra="ignore")
