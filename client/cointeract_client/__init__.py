"""Client of a CoInteract server, sync (`Client`) and async (`AsyncClient`).

from cointeract_client import Client

with Client("http://localhost:8000") as client:
    job = client.generate(person_image="person.png", audio="speech.wav", prompt="She lifts the teapot.")
    client.download(job, "out.mp4")
"""

from cointeract_client.admin_types import KeyUse, Owner, Queue, QueuedJob, Worker, WorkerList
from cointeract_client.aio import AsyncClient
from cointeract_client.batch import Result, Row, read_rows, run_batch
from cointeract_client.errors import (
    ApiError,
    CoInteractError,
    ConnectionFailed,
    DownloadDamaged,
    JobFailed,
    Problem,
    WaitTimeout,
    WebhookInvalid,
)
from cointeract_client.events import Event
from cointeract_client.sync import Client
from cointeract_client.types import (
    CheckpointUsed,
    Delivery,
    DeliveryTry,
    Job,
    JobError,
    JobPage,
    JobStatus,
    JobUrls,
    KeptFile,
    LogLine,
    Model,
    SignedUrls,
    Usage,
    Validation,
    Warn,
)
from cointeract_client.webhooks import WebhookEvent, verify_webhook

__all__ = [
    "ApiError",
    "AsyncClient",
    "CheckpointUsed",
    "Client",
    "CoInteractError",
    "ConnectionFailed",
    "Delivery",
    "DeliveryTry",
    "DownloadDamaged",
    "Event",
    "Job",
    "JobError",
    "JobFailed",
    "JobPage",
    "JobStatus",
    "JobUrls",
    "KeptFile",
    "KeyUse",
    "LogLine",
    "Model",
    "Owner",
    "Problem",
    "Queue",
    "QueuedJob",
    "Result",
    "Row",
    "SignedUrls",
    "Usage",
    "Validation",
    "WaitTimeout",
    "Warn",
    "WebhookEvent",
    "WebhookInvalid",
    "Worker",
    "WorkerList",
    "read_rows",
    "run_batch",
    "verify_webhook",
]
