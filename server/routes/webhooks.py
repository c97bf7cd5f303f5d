"""Routes for the deliveries of webhooks, and for the secret that signs them."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Final, Literal

from fastapi import Path as PathParameter
from pydantic import Field

from contract.choices import WebhookEvent
from contract.state import Job
from server.access import ReadableJob, ServicesOf, Submitter, WritableJob
from server.delivery.delivery_log import DeliveryLog, Try, read_log
from server.delivery.webhooks import Cursor, event_of, message_id
from server.errors import ApiError
from server.openapi import PROBLEM
from server.routing import Router
from server.schemas import Wire
from server.services import Services

MOST_TRIES: Final = 25
"""The limit of tries of one message. Each is a request to a host that a client has named."""
router = Router(prefix="/v1", tags=["webhooks"], responses=PROBLEM)
Sequence = Annotated[
    int, PathParameter(ge=1, le=999_999, description="Number of the message, as the list of deliveries says.")
]


class DeliveryState(StrEnum):
    """The state of a message."""

    PENDING = "pending"
    """The message is being sent, or will be sent or sent again."""
    DELIVERED = "delivered"
    FAILED = "failed"
    """The receiver refused the message (410), or it was given up after a day."""
    NOT_SENT = "not_sent"
    """The receiver refused an earlier message (410), which ends the job's messages."""


class TryView(Wire):
    """One try."""

    at: datetime
    seconds: float = Field(description="Until the answer, or until it was given up.")
    status: int | None = Field(description="HTTP status of the answer; null if there was none.")
    error: str | None = Field(description="Why there was no answer.")


class Delivery(Wire):
    """A message to the job's webhook."""

    id: str = Field(description="The `webhook-id` that it is sent with, each time.")
    object: Literal["delivery"] = "delivery"
    sequence: int = Field(description="Its number, for `redeliver`.")
    event: WebhookEvent
    event_at: datetime
    state: DeliveryState
    next_try_at: datetime | None
    tries: list[TryView] = Field(description="The newest ones, oldest first.")


class DeliveryList(Wire):
    """The messages to a job's webhook, oldest first."""

    object: Literal["list"] = "list"
    url: str | None = Field(description="The job's webhook_url.")
    data: list[Delivery]


class WebhookSecret(Wire):
    """The secret that a key's webhooks are signed with."""

    object: Literal["webhook_secret"] = "webhook_secret"
    secret: str = Field(description="whsec_ and base64, as Standard Webhooks say.")
    since: datetime


def _state_of(sequence: int, tries: tuple[Try, ...], cursor: Cursor) -> DeliveryState:
    if sequence in cursor.failed or (sequence >= cursor.sequence and not cursor.over):
        return DeliveryState.PENDING
    if any(made.arrived for made in tries):
        return DeliveryState.DELIVERED
    return DeliveryState.FAILED if tries else DeliveryState.NOT_SENT


def _deliveries(job: Job, services: Services) -> list[Delivery]:
    """Raises UnreadableJob, OSError."""
    log: DeliveryLog = read_log(services.store, job.id)
    cursor = services.webhooks.cursor_of(job.id)
    found = []
    for sequence, entry in enumerate(services.journal.entries(job.id, 1), start=1):
        if (event := event_of(entry, job)) is None:
            continue
        tries, due = log.tries.get(sequence, ()), cursor.failed.get(sequence)
        found.append(
            Delivery(
                id=message_id(job.id, sequence),
                sequence=sequence,
                event=event,
                event_at=entry.at,
                state=_state_of(sequence, tries, cursor),
                next_try_at=due and due.next_at,
                tries=[TryView(**made.model_dump()) for made in tries],
            )
        )
    return found


@router.get("/jobs/{job_id}/deliveries", response_model=DeliveryList, summary="What became of webhooks")
def list_deliveries(job: ReadableJob, services: ServicesOf) -> DeliveryList:
    """Each message to the job's webhook, with its tries. Kept with the job."""
    return DeliveryList(url=job.submitted.webhook_url, data=_deliveries(job, services))


@router.post(
    "/jobs/{job_id}/deliveries/{sequence}/redeliver",
    status_code=202,
    response_model=Delivery,
    summary="Send a webhook again",
)
def redeliver(job: WritableJob, services: ServicesOf, sequence: Sequence) -> Delivery:
    """Send a message again within seconds, with the same id and body, whatever its state."""
    known = {delivery.sequence: delivery for delivery in _deliveries(job, services)}
    if sequence not in known:
        raise ApiError("not_found", "The job has no such message.")
    if len(known[sequence].tries) >= MOST_TRIES:
        detail = f"The message was tried {MOST_TRIES} times, which is the limit."
        raise ApiError("deliveries_limit", detail, limit=MOST_TRIES, retry_after_s=3600)
    services.webhooks.tell_again(job, sequence)
    return next(each for each in _deliveries(job, services) if each.sequence == sequence)


@router.get("/webhooks/secret", response_model=WebhookSecret, summary="The key's webhook secret")
def get_secret(services: ServicesOf, principal: Submitter) -> WebhookSecret:
    """Your key's secret, if it has made one. Until then the server's secret signs."""
    own = services.webhooks.secrets.own(principal.owner)
    if own is None:
        raise ApiError("not_found", "This key has no secret of its own; POST to this route makes one.")
    return WebhookSecret(secret=own.secret, since=own.since)


@router.post("/webhooks/secret", response_model=WebhookSecret, summary="Make or renew the webhook secret")
def renew_secret(services: ServicesOf, principal: Submitter) -> WebhookSecret:
    """Make or replace your key's secret. For a day the old one signs too, while receivers change over."""
    made = services.webhooks.secrets.renew(principal.owner)
    return WebhookSecret(secret=made.secret, since=made.since)
