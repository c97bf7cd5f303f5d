"""Traces for OpenTelemetry: spans from a submit through its clips, in whatever process they happen.

Off by default. Then each span is `NO_SPAN`, and `jobs.open_telemetry` is not even imported. A job carries its
context in its first entry, as W3C writes it (`traceparent`), so a trace survives restarts, retries and a lost
Redis.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final, Protocol

from contract.settings import Settings

Value = str | int | float | bool


class TracesNotInstalledError(RuntimeError):
    """Traces are wanted, but the packages for them are missing. The message says what to install."""


class Span(Protocol):
    """Something that began and will end. Threads may share one."""

    @property
    def context(self) -> str | None:
        """Its `traceparent`, for spans below it in any process."""

    def note(self, **attributes: Value) -> None:
        """Add what became known. Underscores in a name stand for the dots of ours: `job_id`."""

    def rename(self, name: str) -> None:
        """Give it the name that became known."""

    def end(self, error: str | None = None) -> None:
        """End it, now. `error` says why it failed."""


class _Nothing:
    context = None

    def note(self, **attributes: Value) -> None:
        pass

    def rename(self, name: str) -> None:
        pass

    def end(self, error: str | None = None) -> None:
        pass


NO_SPAN: Final[Span] = _Nothing()


class Traces:
    """Spans that are nothing. `jobs.open_telemetry` has those that are something."""

    def start(self, name: str, parent: str | None = None, began_s: float | None = None) -> Span:
        """Begin a span below `parent`, a `traceparent`; without one, or if it makes no sense, a new trace.

        `began_s` is when it began, in Unix time, if that was not now.
        """
        return NO_SPAN

    @contextmanager
    def around(self, name: str, parent: str | None = None) -> Iterator[Span]:
        """A span around a block. `parent` defaults to the span around that, in this task or thread."""
        yield NO_SPAN

    def current(self) -> str | None:
        """The `traceparent` of the span around the caller; None if there is none."""
        return None

    def close(self) -> None:
        """Send what was not sent yet, or give up after a moment."""


def open_traces(settings: Settings, service: str, facts: Mapping[str, Value] | None = None) -> Traces:
    """The traces of this process. `facts` are true of all its spans. Raises TracesNotInstalledError."""
    if not settings.traces:
        return Traces()
    try:
        from jobs.open_telemetry import OpenTelemetry
    except ImportError as error:
        raise TracesNotInstalledError(
            f"COINTERACT_TRACES needs a package that is not installed ({error.name}): "
            "pip install 'cointeract-server[traces]'"
        ) from error
    return OpenTelemetry.exporting(service, facts or {})
