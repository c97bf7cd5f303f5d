"""Checks the server's webhooks as Standard Webhooks say (standardwebhooks.com)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import time
from collections.abc import Mapping
from datetime import datetime

from pydantic import BaseModel, ConfigDict

from cointeract_client.errors import WebhookInvalid
from cointeract_client.types import Job

TOLERANCE_S = 300


class WebhookEvent(BaseModel):
    """One event, with the job as it was when the event happened."""

    model_config = ConfigDict(frozen=True, extra="allow")

    type: str
    """job.started, job.clip_finished, job.succeeded, job.failed, job.canceled, …"""
    timestamp: datetime
    data: Job


def verify_webhook(
    body: bytes, headers: Mapping[str, str], secret: str, tolerance_s: float = TOLERANCE_S
) -> WebhookEvent:
    """Check the signature of a webhook, and return the event in its body.

    Args:
        body: the request's body, exactly as received.
        headers: the request's headers, in any case.
        secret: `whsec_…`, as the server's operator gives it.
        tolerance_s: how many seconds the message's timestamp may differ from the clock here.

    Raises:
        WebhookInvalid: a header is missing, the signature is wrong, or the message is too old.
    """
    given = {name.lower(): value for name, value in headers.items()}
    try:
        message_id, sent_at, signatures = (
            given[f"webhook-{name}"] for name in ("id", "timestamp", "signature")
        )
        seconds = int(sent_at)
    except (KeyError, ValueError) as error:
        raise WebhookInvalid(f"a webhook header is missing or malformed: {error}") from error
    if abs(time.time() - seconds) > tolerance_s:
        raise WebhookInvalid("the message is too old, or the clocks differ too much")
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except binascii.Error as error:
        raise WebhookInvalid("the secret is not of the form whsec_<base64>") from error
    signed = f"{message_id}.{sent_at}.".encode() + body
    expected = base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
    versions = (signature.partition(",") for signature in signatures.split())
    if not any(version == "v1" and hmac.compare_digest(value, expected) for version, _, value in versions):
        raise WebhookInvalid("the signature is wrong")
    return WebhookEvent.model_validate_json(body)
