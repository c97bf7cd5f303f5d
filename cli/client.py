"""A client of the HTTP API: submit a job, follow it, fetch its video. `cointeract generate --url` uses it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
from pydantic import BaseModel, ConfigDict

from contract.job import JobState
from contract.network import goes_through_proxies

RECONNECT_S = 60.0
"""How long to go on following a job while the server is away: the job survives a restart of the server."""


class ServiceError(Exception):
    """The service refused a request or cannot be reached. The message is meant for people."""

    def __init__(self, message: str, status: int | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class JobFailure(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    code: str
    message: str


class CheckpointUsed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    trained: bool


class JobStatus(BaseModel):
    """The part of the service's job object that a command line shows."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    status: JobState
    checkpoint: CheckpointUsed
    progress: float = 0.0
    stage: str = ""
    clip: int | None = None
    num_clips: int | None = None
    step: int | None = None
    num_steps: int | None = None
    queue_position: int | None = None
    estimated_finish_at: datetime | None = None
    seed: int | None = None
    error: JobFailure | None = None


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    note: str = ""


class _Models(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    data: list[_Model]


class ServiceClient:
    """A client of one server. Every error is a `ServiceError` with a sentence that says what to do."""

    def __init__(
        self, url: str, api_key: str | None = None, transport: httpx.BaseTransport | None = None
    ) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.url = url.rstrip("/")
        self._http = httpx.Client(
            base_url=self.url,
            headers=headers,
            timeout=60.0,
            transport=transport,
            trust_env=goes_through_proxies(self.url),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def submit(self, files: Mapping[str, Path], fields: Mapping[str, str | Sequence[str]]) -> JobStatus:
        """Post one job; `files` and `fields` are named as in `POST /v1/generate`."""
        with ExitStack() as opened:
            upload = {
                name: (path.name, opened.enter_context(path.open("rb")), "application/octet-stream")
                for name, path in files.items()
            }
            form = {name: value if isinstance(value, str) else list(value) for name, value in fields.items()}
            try:
                response = self._http.post(
                    "/v1/generate",
                    files=upload,
                    data=form,
                    headers={"Idempotency-Key": uuid.uuid4().hex},
                )
            except httpx.HTTPError as error:
                raise self._unreachable(error) from error
        _raise_for_problem(response)
        return JobStatus.model_validate_json(response.content)

    def status(self, job_id: str) -> JobStatus:
        try:
            response = self._http.get(f"/v1/jobs/{job_id}")
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        _raise_for_problem(response)
        return JobStatus.model_validate_json(response.content)

    def note(self, checkpoint: str) -> str:
        """What viewers of a checkpoint's videos should know; empty if there is nothing to know."""
        try:
            response = self._http.get("/v1/models")
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        _raise_for_problem(response)
        models = _Models.model_validate_json(response.content).data
        return next((model.note for model in models if model.id == checkpoint), "")

    def follow(self, job_id: str, interval_s: float = 0.5) -> Iterator[JobStatus]:
        """Yield the job's state every `interval_s` seconds until it is final."""
        answered_at = time.monotonic()
        while True:
            try:
                job = self.status(job_id)
            except ServiceError as error:
                if error.status is not None and error.status < 500:
                    raise
                if time.monotonic() - answered_at > RECONNECT_S:
                    raise
            else:
                answered_at = time.monotonic()
                yield job
                if job.status.is_terminal:
                    return
            time.sleep(interval_s)

    def cancel(self, job_id: str) -> None:
        try:
            response = self._http.post(f"/v1/jobs/{job_id}/cancel")
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        _raise_for_problem(response)

    def download(self, job_id: str, target: Path) -> int:
        """Save the finished video as `target`, which appears only when it is complete. Returns its bytes."""
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(target.name + ".part")
        try:
            with self._http.stream("GET", f"/v1/jobs/{job_id}/video") as response:
                if response.is_error:
                    response.read()
                    _raise_for_problem(response)
                with partial.open("wb") as file:
                    for block in response.iter_bytes():
                        file.write(block)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        partial.replace(target)
        return target.stat().st_size

    def _unreachable(self, error: httpx.HTTPError) -> ServiceError:
        if isinstance(error, httpx.ConnectError):
            return ServiceError(
                f"No server answers at {self.url}. Start one with `cointeract up`, or check --url."
            )
        return ServiceError(f"The connection to {self.url} failed: {error or type(error).__name__}.")


class _Problem(BaseModel):
    """A problem document (RFC 9457), as the service writes it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    title: str = ""
    detail: str = ""
    code: str | None = None
    field: str | None = None


def _raise_for_problem(response: httpx.Response) -> None:
    if not response.is_error:
        return
    try:
        problem = _Problem.model_validate_json(response.content)
    except ValueError:
        problem = _Problem(title=response.reason_phrase)
    sentence = problem.detail or problem.title or response.reason_phrase
    if problem.field and problem.field not in sentence:
        sentence = f"{problem.field}: {sentence}"
    if response.status_code == 401:
        sentence += " Give a key with --api-key or COINTERACT_API_KEY."
    elif "retry-after" in response.headers:
        sentence += f" Try again in {response.headers['retry-after']} s."
    raise ServiceError(sentence, response.status_code, problem.code)
