"""The RQ job that travels through Redis. Whoever can write to Redis cannot run code here through it.

RQ imports functions and callbacks by the names it finds in Redis, and posts to the webhooks it finds there. A
`Ticket` looks up its function in a table that the process itself provides, and has neither callbacks nor
webhooks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from rq.job import Job as RqJob

RENDER_NEXT = "render_next"
"""The function name in every ticket: a name in a table, never imported."""


class UnknownFunction(Exception):
    """A ticket names a function that is not on the list."""


class Ticket(RqJob):
    """An RQ job that can only run what `functions` allows."""

    functions: Mapping[str, Callable[..., None]] = MappingProxyType({})

    @property
    def func(self) -> Callable[..., None]:
        name = self.func_name
        if name is None or self.instance is not None or name not in self.functions:
            raise UnknownFunction(f"ticket {self.id} names the function {name!r}")
        return self.functions[name]

    @property
    def success_callback(self) -> None:
        return None

    @property
    def failure_callback(self) -> None:
        return None

    @property
    def stopped_callback(self) -> None:
        return None

    def send_webhooks(self, status: Any, *, exc_string: str | None = None) -> None:
        """Send nothing: nobody vouches for webhooks found in Redis."""
