"""Every error that the API answers with: a stable code, its HTTP status, an RFC 9457 problem document.

`STATUS_OF_CODE` is the one table of codes. `api_error_of` translates the errors of other modules into them.
docs/errors.md lists the same codes; a test keeps the two equal.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from contract.request import FieldError, field_error
from jobs.artifacts import DISK_FULL, STORAGE_AWAY
from jobs.journal import JobNotFound, Outdated, UnreadableJob
from jobs.kept_files import FileNotKept
from jobs.logs import one_line
from server.fetch import FetchedNothing, FetchError, FetchRefused, FetchTooLarge

log = logging.getLogger(__name__)

STATUS_OF_CODE: Final[Mapping[str, int]] = {
    # The request as a whole
    "bad_request": 400,
    "malformed_body": 400,
    "unauthorized": 401,
    "insufficient_scope": 403,
    "cross_origin": 403,
    "bad_signature": 403,
    "not_found": 404,
    "job_not_found": 404,
    "file_not_found": 404,
    "method_not_allowed": 405,
    "upload_timeout": 408,
    "client_closed_request": 499,
    "unsupported_content_type": 415,
    "request_too_large": 413,
    "misdirected_host": 421,
    # Fields
    "missing_field": 422,
    "unknown_field": 422,
    "duplicate_field": 422,
    "invalid_value": 422,
    "out_of_range": 422,
    "too_long": 422,
    "too_many": 422,
    "control_characters": 422,
    "conflicting_fields": 422,
    "unknown_model": 422,
    "unknown_file": 422,
    "speech_not_offered": 422,
    "speech_refused": 422,
    "unsupported_size": 422,
    "pose_not_supported": 422,
    "preset_not_supported": 422,
    # Files
    "file_too_large": 413,
    "unsupported_media_type": 415,
    "media_type_mismatch": 415,
    "undecodable_file": 422,
    "truncated_file": 422,
    "empty_file": 422,
    "image_too_large": 422,
    "image_too_small": 422,
    "audio_too_long": 422,
    "audio_too_short": 422,
    "audio_unsupported_layout": 422,
    "audio_invalid_samples": 422,
    "video_too_long": 422,
    "video_too_large": 422,
    "fetch_refused": 422,
    "fetch_failed": 422,
    # State
    "job_not_finished": 409,
    "job_already_finished": 409,
    "no_result": 409,
    "motion_not_kept": 409,
    "job_not_queued": 409,
    "idempotency_key_reused": 409,
    "idempotent_job_gone": 409,
    "precondition_failed": 412,
    "range_not_satisfiable": 416,
    # Limits and outages
    "queue_full": 429,
    "queued_jobs_limit": 429,
    "gpu_seconds_limit": 429,
    "stored_bytes_limit": 429,
    "files_limit": 429,
    "deliveries_limit": 429,
    "too_many_streams": 429,
    "internal_error": 500,
    "job_unreadable": 500,
    "busy": 503,
    "no_checkpoint": 503,
    "speech_unavailable": 503,
    "storage_unavailable": 503,
    "insufficient_storage": 507,
}

TITLE_OF_STATUS: Final[Mapping[int, str]] = {
    400: "Bad request",
    401: "API key missing or not valid",
    403: "Not allowed",
    404: "Not found",
    405: "Method not allowed",
    408: "Upload took too long",
    409: "Conflict with the state of the job",
    412: "Precondition failed",
    413: "Too large",
    415: "Unsupported type of content",
    416: "Range not satisfiable",
    421: "Not the host this server speaks for",
    422: "A field of the request is not valid",
    429: "Limit reached",
    499: "Client closed the connection",
    500: "Internal error",
    503: "Not available at the moment",
    507: "Out of storage",
}

DEFAULT_RETRY_AFTER_S: Final[Mapping[int, int]] = {429: 5, 503: 5, 507: 60}

PROBLEM_MEDIA_TYPE: Final = "application/problem+json"


@dataclass
class ApiError(Exception):
    """An answer that is not a success. `field` and `limit` name what to change."""

    code: str
    detail: str
    field: str | None = None
    limit: float | int | str | None = None
    retry_after_s: int | None = None
    headers: Mapping[str, str] | None = None
    close: bool = False
    """Close the connection after the answer, because the rest of the request is still arriving unread."""

    def __post_init__(self) -> None:
        super().__init__(self.code, self.detail)

    @property
    def status(self) -> int:
        return STATUS_OF_CODE[self.code]

    def body(self) -> dict[str, object]:
        problem: dict[str, object] = {
            "type": f"urn:cointeract:error:{self.code}",
            "title": TITLE_OF_STATUS[self.status],
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
        }
        if self.field is not None:
            problem["field"] = self.field
        if self.limit is not None:
            problem["limit"] = self.limit
        return problem

    def openai_body(self) -> dict[str, object]:
        """The body in the form that OpenAI's API uses."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.detail, "type": kind, "param": self.field, "code": self.code}}

    def response(self, openai: bool = False) -> Response:
        headers = dict(self.headers or {})
        retry_after = self.retry_after_s or DEFAULT_RETRY_AFTER_S.get(self.status)
        if retry_after is not None:
            headers["Retry-After"] = str(retry_after)
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if self.status == 409:
            # Clients such as OpenAI's retry a 409 by themselves. Waiting helps only with an unfinished job.
            headers["x-should-retry"] = "true" if self.code == "job_not_finished" else "false"
        if self.close:
            headers["Connection"] = "close"
        if openai:
            return JSONResponse(self.openai_body(), status_code=self.status, headers=headers)
        return JSONResponse(
            self.body(), status_code=self.status, headers=headers, media_type=PROBLEM_MEDIA_TYPE
        )


def printable(text: str, limit: int = 200) -> str:
    """A client's text, safe for a log line or an error message.

    It has at most `limit` characters and no control characters.
    """
    safe = one_line(text[: limit + 1])
    return safe if len(text) <= limit else safe[:limit] + "…"


def api_error_of(error: Exception, field: str | None = None) -> ApiError:
    """The answer to an error that a route, or the code below it, raised.

    `field` names what the error is about, if only the caller knows.
    """
    match error:
        case ApiError():
            return error
        case FieldError():
            field = printable(error.field, 100) if error.field else None
            return ApiError(error.code, printable(error.message), field, error.limit)
        case FetchRefused():
            return ApiError("fetch_refused", error.detail, field)
        case FetchTooLarge():
            return ApiError("file_too_large", error.detail, field, error.limit)
        case FetchedNothing():
            return ApiError("empty_file", error.detail, field)
        case FetchError():
            return ApiError("fetch_failed", error.detail, field, error.limit)
        case JobNotFound():
            return ApiError("job_not_found", "There is no such job.")
        case FileNotKept():
            return ApiError("file_not_found", "There is no such file.")
        case Outdated():
            return ApiError("busy", "The job is changing; try again.", retry_after_s=1)
        case OSError() if error.errno in DISK_FULL:
            return ApiError("insufficient_storage", "The disk is full.")
        case OSError() if error.errno in STORAGE_AWAY:
            return ApiError("storage_unavailable", "Storage cannot be used at the moment; try again.")
        case PermissionError():
            return ApiError("storage_unavailable", "Storage does not let the server in; its log says where.")
        case UnreadableJob():
            detail = "This version of the server cannot read the job, and leaves it alone; its log says why."
            return ApiError("job_unreadable", detail, headers={"x-should-retry": "false"})
        case ClientDisconnect():
            return ApiError("client_closed_request", "The client closed the connection.", close=True)
        case RequestValidationError():
            first = error.errors()[0]
            place, *inside = first["loc"]
            # One of a repeated parameter counts as the parameter. In a body its number says which it is.
            location = tuple(inside if place == "body" else inside[:1])
            return api_error_of(field_error({**first, "loc": location}, ()))
        case HTTPException(status_code=404):
            return ApiError("not_found", "There is no such route.")
        case HTTPException(status_code=405):
            return ApiError(
                "method_not_allowed", "This route does not know that method.", headers=error.headers
            )
        case HTTPException(__cause__=ApiError() as cause):
            return cause  # FastAPI wraps what happens while it reads a body
        case HTTPException():
            return ApiError("bad_request", printable(str(error.detail)))
        case _:
            return ApiError("internal_error", "Something went wrong on our side; it has been logged.")


async def answer(request: Request, error: Exception) -> Response:
    """The exception handler for everything a route may raise."""
    problem = api_error_of(error)
    request.app.state.services.metrics.refused.labels(problem.code).inc()
    if problem.code == "internal_error":
        log.error("unhandled error in %s %s", request.method, printable(request.url.path), exc_info=error)
    elif problem.code == "storage_unavailable":
        log.error("storage fails: %s", error)
    return problem.response(openai=request.url.path.startswith("/v1/videos"))


def install(app: FastAPI) -> None:
    """Answer every error of `app` with a problem document."""
    for kind in (
        ApiError,
        FieldError,
        JobNotFound,
        FileNotKept,
        Outdated,
        ClientDisconnect,
        RequestValidationError,
        HTTPException,
        OSError,
        Exception,
    ):
        app.add_exception_handler(kind, answer)
