"""The base of every value that crosses a process boundary."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Base of every value in the contract. It is immutable, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def stored(cls, data: bytes) -> Self:
        """The value as another version of this program may have written it.

        Unknown fields are dropped, here and in all values inside, so that an older version can read what a
        newer one wrote.

        Raises ValueError.
        """
        return cls.model_validate_json(data, extra="ignore")
