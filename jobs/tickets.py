"""The RQ job that travels through Redis, with everything removed by which a writer to Redis could run code
here.

RQ imports functions and callbacks by the names it finds in Redis, and posts to the web hooks it finds there.
A `Ticket` looks its function up in a table that the process itself provides, and has neither callbacks nor
web hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from rq.job import Job as RqJob

RENDER_NEXT = "render_next"
"""Function name of the only kind of ticket there is: a name in a table, not one that is imported."""


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
        """Sends nothing: web hooks found in Redis are nobody's."""
