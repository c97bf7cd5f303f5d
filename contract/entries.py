"""The entries of a job's journal. `jobs.journal` folds them into a `Job`."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from contract.attention import AttentionBackend
from contract.choices import WebhookEvent
from contract.frozen import Frozen
from contract.job import CancelReason, InputFiles, JobError, Priority, StoredFile
from contract.maker import Maker
from contract.memory import MemoryMode
from contract.params import GenerationParams
from contract.warnings import JobWarning


class Entry(Frozen):
    """One numbered line of a job's journal."""

    at: datetime


class SpokenText(Frozen):
    """A text that was given instead of speech."""

    text: str
    voice: str
    model: str
    """Of the speech server."""


class ClipFinished(Entry):
    """A finished clip. A later attempt continues after it instead of rendering it again."""

    type: Literal["clip_finished"] = "clip_finished"
    attempt: int
    clip: int
    video: StoredFile
    motion: StoredFile | None
    """The frames that the next clip needs; None in a job that shares the clip and does not need them."""
    poster: StoredFile | None = None
    """A frame from its middle, small, as a JPEG."""
    fragment: StoredFile | None = None
    """With its slice of the speech, as a fragment of a stream."""
    stream_header: StoredFile | None = None
    """What a player reads before the first fragment; with clip 0 only."""
    router_map: StoredFile | None = None
    """Where the router sent hands and faces, if that was asked for: a small video."""
    seed: int | None = None
    """Of its noise, if that is not what follows from the job's settings: another job rendered it."""
    gpu_seconds: float

    @property
    def shown_files(self) -> list[StoredFile]:
        """All files but `motion`, which is no clip's for ever."""
        files = (self.video, self.poster, self.fragment, self.stream_header, self.router_map)
        return [file for file in files if file is not None]


class Submitted(Entry):
    type: Literal["submitted"] = "submitted"
    owner: str
    """Id of the API key that submitted the job; "local" when the server runs without keys."""
    checkpoint: str
    trained: bool
    params: GenerationParams
    inputs: InputFiles
    thumbnail: StoredFile | None = None
    """The person's photo, small, as a JPEG."""
    priority: Priority = Priority.NORMAL
    metadata: dict[str, str] = Field(default_factory=dict)
    webhook_url: str | None = None
    webhook_events: tuple[WebhookEvent, ...] | None = None
    """What the webhook is told; None: everything."""
    retention_s: int
    """Seconds after the terminal entry until the job and its files are removed."""
    cancel_after_s: int | None = None
    """Seconds after the submit at which an unfinished job is canceled."""
    cost: float
    """Estimated work in clip·step·megapixels; only ratios between jobs matter (fair share and estimates)."""
    idempotency_claim: str | None = None
    """The claim in storage that leads a repeated submit to this job."""
    max_running: int | None = None
    """Jobs the owner may have running at once; the job waits while that many run. None: no limit."""
    speech: SpokenText | None = None
    """The text that the audio was made from, if it was."""
    consent: str | None = None
    """What the submitter says about consent; signed into the video."""
    received: dict[str, str] = Field(default_factory=dict)
    """SHA-256 of each input as the client sent it, by field. `inputs` are decoded and written anew."""
    warnings: tuple[JobWarning, ...] = ()
    """What the submitter should know. The job tells it."""
    keep_motion: bool = False
    """Whether the frames between clips are kept with the job, so that others can continue from any clip."""
    trace: str | None = None
    """Context of the trace that the submit belongs to, as W3C's `traceparent`; None without traces."""
    parent: str | None = None
    """The job that this one was made from. It may be gone."""
    clips: tuple[ClipFinished, ...] = ()
    """Finished clips that this job shares with its parent; it has files of its own with their content."""


class JobChanges(Frozen):
    """What a job's owner has changed about it since the submit. It is no entry: it is replaced."""

    metadata: dict[str, str]
    priority: Priority


class Started(Entry):
    type: Literal["started"] = "started"
    attempt: int
    worker: str
    attention: AttentionBackend | None = None
    """The attempt's attention backend. A request gives the same bits only on the same backend."""
    maker: Maker | None = None
    """What the attempt is rendered with, as far as its worker says."""


InterruptReason = Literal["shutdown", "worker_lost", "child_died", "out_of_memory", "error", "stalled"]


class Interrupted(Entry):
    """An attempt ended without a verdict on the job, which is queued again."""

    type: Literal["interrupted"] = "interrupted"
    attempt: int
    reason: InterruptReason
    burns_attempt: bool
    """A graceful stop burns no attempt. Anything that could be the job's own fault does."""
    memory_mode: MemoryMode | None = None
    """The device's memory was too small: the worker goes on in this mode."""
    message: str = ""


class Succeeded(Entry):
    type: Literal["succeeded"] = "succeeded"
    attempt: int
    video: StoredFile
    content_sha256: str | None = None
    """SHA-256 of the video without its content credentials; None: it carries none."""
    poster: StoredFile | None = None
    duration_s: float
    gpu_seconds: float


class Failed(Entry):
    type: Literal["failed"] = "failed"
    attempt: int
    error: JobError


class Canceled(Entry):
    type: Literal["canceled"] = "canceled"
    by: str
    reason: CancelReason = CancelReason.REQUEST


JournalEntry = Annotated[
    Submitted | Started | ClipFinished | Interrupted | Succeeded | Failed | Canceled,
    Field(discriminator="type"),
]


JOURNAL_ENTRY: TypeAdapter[JournalEntry] = TypeAdapter(JournalEntry)
ENTRY_TYPES: frozenset[str] = frozenset(JOURNAL_ENTRY.json_schema()["discriminator"]["mapping"])


def stored_entry(data: bytes) -> JournalEntry:
    """An entry as another version of this program may have written it: fields we do not know are dropped.

    Raises ValueError for what makes the whole job unreadable: a type or a value that we do not know, damage.
    """
    return JOURNAL_ENTRY.validate_json(data, extra="ignore")
