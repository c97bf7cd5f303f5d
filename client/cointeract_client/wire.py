"""Shared by both clients: requests as data, answers as objects, and when to try again."""

from __future__ import annotations

import base64
import io
import json
import mimetypes
import os
import random
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, Union

import httpx
from pydantic import BaseModel

from cointeract_client.errors import ApiError, ConnectionFailed, Problem

FileInput = Union[str, "os.PathLike[str]", bytes, BinaryIO]
"""A path, bytes, an open binary file, a `https:` or `data:` URL, or the id of a kept file."""

Answer = TypeVar("Answer", bound=BaseModel)
RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504, 507})
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0


@dataclass(frozen=True)
class Call:
    """A request that can be sent several times."""

    method: str
    path: str
    headers: dict[str, str] = field(default_factory=dict)
    params: Mapping[str, str | list[str]] = field(default_factory=dict)
    json: Any = None
    form: Mapping[str, list[str]] | None = None
    files: Mapping[str, FileInput] = field(default_factory=dict)

    def build(self, client: httpx.Client | httpx.AsyncClient, opened: ExitStack) -> httpx.Request:
        """Build the request, with its files opened again."""
        # httpx would send a form without files urlencoded, which the server does not read.
        parts: list[tuple[str, Any]] = [
            (name, (None, text)) for name, texts in (self.form or {}).items() for text in texts
        ]
        parts += [(name, _part(name, given, opened)) for name, given in self.files.items()]
        return client.build_request(
            self.method,
            self.path,
            headers=self.headers,
            params=dict(self.params) or None,
            json=self.json,
            files=parts or None,
        )


def is_this_machine(url: str) -> bool:
    """Whether a URL leads to this machine. No proxy of the environment could reach it."""
    host = httpx.URL(url).host.strip("[]")
    return host == "localhost" or host == "::1" or host.startswith("127.")


def _part(name: str, given: FileInput, opened: ExitStack) -> tuple[str, BinaryIO | bytes, str]:
    if isinstance(given, bytes):
        return name, given, "application/octet-stream"
    if isinstance(given, (str, os.PathLike)):
        path = Path(given)
        return path.name, opened.enter_context(path.open("rb")), "application/octet-stream"
    given.seek(0)
    return name, given, "application/octet-stream"


def submit_call(
    path: str, files: Mapping[str, FileInput | None], settings: Mapping[str, Any], idempotency_key: str | None
) -> Call:
    """A submit as a form. If a file is given as a `data:` URL, which is too long for a form, as JSON."""
    given: dict[str, FileInput] = {name: file for name, file in files.items() if file is not None}
    values = {name: value for name, value in settings.items() if value is not None}
    headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
    references = {name: file for name, file in given.items() if _is_reference(file)}
    in_the_text = any(isinstance(file, str) and file.startswith("data:") for file in references.values())
    if in_the_text:
        body = values | {name: _as_reference(file) for name, file in given.items()}
        return Call("POST", path, headers=headers, json=body)
    form = {name: _form_texts(value) for name, value in {**values, **references}.items()}
    upload = {name: file for name, file in given.items() if name not in references}
    return Call("POST", path, headers=headers, form=form, files=upload)


def _is_reference(given: FileInput) -> bool:
    return isinstance(given, str) and given.startswith(("https:", "http:", "data:", "file_"))


def _as_reference(given: FileInput) -> str:
    if isinstance(given, str) and _is_reference(given):
        return given
    if isinstance(given, bytes):
        data, kind = given, None
    elif isinstance(given, (str, os.PathLike)):
        data, kind = Path(given).read_bytes(), mimetypes.guess_type(os.fspath(given))[0]
    else:
        given.seek(0, io.SEEK_SET)
        data, kind = given.read(), None
    return f"data:{kind or 'application/octet-stream'};base64,{base64.b64encode(data).decode()}"


def _form_texts(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, bool):
        return ["true" if value else "false"]
    if isinstance(value, Mapping):
        return [json.dumps(dict(value))]
    if isinstance(value, Sequence):
        return [str(item) for item in value]
    return [str(value)]


def error_of(response: httpx.Response) -> ApiError:
    """The error in an answer that has been read."""
    try:
        body = json.loads(response.content)
        problem = Problem.model_validate(body.get("error", body) if isinstance(body, dict) else body)
    except (ValueError, TypeError):
        problem = Problem(title=response.reason_phrase or "The answer is not one of a CoInteract server.")
    if problem.status != response.status_code:
        problem = problem.model_copy(update={"status": response.status_code})
    return ApiError(problem, _retry_after(response))


def _retry_after(response: httpx.Response) -> float | None:
    try:
        seconds = float(response.headers["retry-after"])
    except (KeyError, ValueError):
        return None
    return max(0.0, seconds)


def unreachable(url: str, error: httpx.TransportError) -> ConnectionFailed:
    """The error for a server that does not answer."""
    if isinstance(error, httpx.ConnectError):
        return ConnectionFailed(f"No server answers at {url}.")
    return ConnectionFailed(f"The connection to {url} failed: {error or type(error).__name__}.")


@dataclass
class Retries:
    """Decides after each failure how long to pause before the next try, or that there is none."""

    most: int
    tried: int = 0

    def pause_after(self, failure: httpx.Response | httpx.TransportError) -> float | None:
        """Seconds to pause, or None if the failure is final.

        Every request of this package can be repeated safely: a submit carries an Idempotency-Key.
        """
        if isinstance(failure, httpx.Response):
            refused = failure.headers.get("x-should-retry") == "false"
            if failure.status_code not in RETRIED or refused:
                return None
        if self.tried >= self.most:
            return None
        backoff: float = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**self.tried) * random.uniform(0.5, 1.0)
        self.tried += 1
        asked = _retry_after(failure) if isinstance(failure, httpx.Response) else None
        return backoff if asked is None else min(LONGEST_PAUSE_S, max(backoff, asked))
