"""Connects the command line to a server through the client package, and explains errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from cointeract_client import ApiError, Client, CoInteractError, ConnectionFailed

PATIENCE: int = 8
"""How often a request is tried while a server restarts. The tries take more than a minute."""


@contextmanager
def service(url: str, api_key: str | None) -> Iterator[Client]:
    """A client of a server that answers. Raises ConnectionFailed at once if none does."""
    with Client(url, api_key, max_retries=0, timeout_s=10.0) as probe, suppress(ApiError):
        probe.models()  # A key that may only submit is refused here, but the server has answered.
    with Client(url, api_key, max_retries=PATIENCE) as client:
        yield client


def note_of(client: Client, checkpoint: str) -> str:
    """A checkpoint's note for viewers of its videos. Empty if there is none, or the key may not read it."""
    with suppress(ApiError):
        return next((model.note for model in client.models() if model.id == checkpoint), "")
    return ""


def explained(error: CoInteractError) -> str:
    """The error as a sentence, with advice."""
    sentence = str(error)
    if isinstance(error, ConnectionFailed) and sentence.startswith("No server answers"):
        return f"{sentence} Start one with `cointeract up`, or check --url."
    if isinstance(error, ApiError) and error.status == 401:
        return f"{sentence} Give a key with --api-key or COINTERACT_API_KEY."
    if isinstance(error, ApiError) and error.retry_after_s is not None:
        return f"{sentence} Try again in {error.retry_after_s:g} s."
    return sentence
