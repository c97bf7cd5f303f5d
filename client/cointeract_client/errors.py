"""The errors of this package, each with what a caller needs in order to act on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from cointeract_client.types import Job


class Problem(BaseModel):
    """The server's RFC 9457 problem document."""

    model_config = ConfigDict(frozen=True, extra="allow")

    type: str = "about:blank"
    title: str = ""
    status: int = 0
    code: str = ""
    """Stable; docs/errors.md lists all of them."""
    detail: str = ""
    field: str | None = None
    """The field or header that is wrong."""
    limit: float | int | str | None = None
    """The limit that applies to the field."""


class CoInteractError(Exception):
    """Base of all errors of this package. The message is meant for people."""


class ConnectionFailed(CoInteractError):
    """The server did not answer, after all retries."""


class ApiError(CoInteractError):
    """The server refused the request."""

    def __init__(self, problem: Problem, retry_after_s: float | None = None) -> None:
        sentence = problem.detail or problem.title or f"HTTP {problem.status}"
        if problem.field and problem.field not in sentence:
            sentence = f"{problem.field}: {sentence}"
        super().__init__(sentence)
        self.problem = problem
        self.retry_after_s = retry_after_s

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.problem.status

    @property
    def code(self) -> str:
        """The server's stable code of the error."""
        return self.problem.code

    @property
    def field(self) -> str | None:
        """The field or header that is wrong, if it is one."""
        return self.problem.field

    @property
    def limit(self) -> float | int | str | None:
        """The limit that applies to the field, if there is one."""
        return self.problem.limit


class JobFailed(CoInteractError):
    """The job ended without a video: it failed or was canceled. `job` says why."""

    def __init__(self, job: Job) -> None:
        reason = job.error.message if job.error is not None else "no reason was given"
        super().__init__(
            f"Job {job.id} was canceled." if job.status == "canceled" else f"Job {job.id} failed: {reason}"
        )
        self.job = job


class WaitTimeout(CoInteractError):
    """The job was not finished in time. It goes on; wait for it again, or cancel it."""

    def __init__(self, job: Job, seconds: float) -> None:
        super().__init__(f"Job {job.id} is {job.status} after {seconds:g} s; it goes on.")
        self.job = job


class DownloadDamaged(CoInteractError):
    """The bytes that arrived are not those that the server announced."""


class WebhookInvalid(CoInteractError):
    """The signature is missing or wrong, or the message is too old."""
