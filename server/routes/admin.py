"""Routes for a key's own use, and for admins: owners, workers and queue."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Annotated, Literal

from fastapi import Path, Request
from pydantic import Field

from contract.attention import AttentionBackend
from contract.job import Priority, Stage
from contract.memory import MemoryMode
from contract.worker import WorkerInfo
from jobs.cards import read_cards
from server.access import Admin, Reader, ServicesOf, tenant_of
from server.errors import ApiError
from server.keys import ANONYMOUS_OWNER, ApiKey, list_keys
from server.openapi import PROBLEM
from server.routing import Router
from server.schemas import Wire
from server.services import Services
from server.totals import UsageView, usage_of

router = Router(prefix="/v1", tags=["administration"], responses=PROBLEM)
WorkerName = Annotated[str, Path(max_length=300, description="As the list of workers tells it.")]


class WorkerJob(Wire):
    """The job that a worker renders."""

    id: str
    owner: str
    attempt: int
    priority: Priority
    stage: Stage
    progress: float = Field(description="0 to 100.")
    started_at: datetime


class WorkerView(Wire):
    """A live worker."""

    name: str
    model: str = Field(description="The checkpoint that it renders with.")
    device: str
    memory_mode: MemoryMode | None
    attention: AttentionBackend | None
    ready: bool = Field(description="False while it loads the model.")
    draining: bool = Field(description="It finishes its job, and takes no other.")
    problem: str | None = Field(description="What keeps it from working.")
    seconds_per_clip: float | None = Field(
        description="For a clip at the checkpoint's default size and steps, as measured."
    )
    job: WorkerJob | None


class WorkerList(Wire):
    """All live workers."""

    object: Literal["list"] = "list"
    data: list[WorkerView]
    problems: list[str] = Field(description="What keeps workers and other parts from working.")


class QueuedJob(Wire):
    """A job that waits."""

    id: str
    owner: str
    priority: Priority
    position: int = Field(description="1 = starts next.")
    begun: bool = Field(description="It was interrupted, and goes on before all others.")
    estimated_start_at: datetime | None
    estimated_finish_at: datetime | None


class QueueView(Wire):
    """The jobs that wait for one checkpoint, in the order in which they start."""

    model: str
    workers: int
    running: int
    waiting: int
    data: list[QueuedJob] = Field(description="The first hundred.")


class QueueList(Wire):
    """The queues of all checkpoints."""

    object: Literal["list"] = "list"
    data: list[QueueView]


class OwnerView(UsageView):
    """A key and its use."""

    name: str | None = Field(description="Of the key; null for jobs without one, or of one that is gone.")
    scopes: list[str]
    limits: dict[str, float | int | None]
    created_at: datetime | None
    revoked_at: datetime | None


class OwnerList(Wire):
    """All keys, and all other owners of jobs."""

    object: Literal["list"] = "list"
    data: list[OwnerView]


MOST_QUEUED_SHOWN = 100


@router.get("/usage", response_model=UsageView, summary="Know what your key uses")
async def get_usage(request: Request, services: ServicesOf, principal: Reader) -> UsageView:
    """Jobs, files and GPU time of your key. `GET /v1/limits` has its limits."""

    def look() -> UsageView:
        services.index.refresh()
        return usage_of(principal.owner, services)

    async with services.listing.turn(tenant_of(principal, request)):
        return await asyncio.to_thread(look)


def _worker_view(worker: WorkerInfo, draining: bool, seconds_per_clip: float | None) -> WorkerView:
    running = worker.running
    job = None
    if running is not None:
        job = WorkerJob(
            id=running.job_id,
            owner=running.owner,
            attempt=running.attempt,
            priority=running.priority,
            stage=running.progress.stage,
            progress=round(running.progress.percent(), 2),
            started_at=running.started_at,
        )
    return WorkerView(
        name=worker.name,
        model=worker.checkpoint,
        device=worker.device,
        memory_mode=worker.memory_mode,
        attention=None if worker.attention is None else worker.attention.backend,
        ready=worker.ready,
        draining=draining,
        problem=worker.problem,
        seconds_per_clip=seconds_per_clip,
        job=job,
    )


def _workers(services: Services) -> list[WorkerInfo]:
    """The live workers. Raises ApiError (503) while Redis is away."""
    workers = services.hints.workers()
    if workers is None:
        raise ApiError("busy", "Redis does not answer, so the live workers are not known; try again.")
    return workers


@router.get("/admin/workers", response_model=WorkerList, summary="List workers")
def list_workers(services: ServicesOf, principal: Admin) -> WorkerList:
    """Each live worker with its device, speed, problem, and the job that it renders."""
    workers, draining = _workers(services), services.hints.draining()
    clips = {name: card.default_clip for name, card in read_cards(services.store).items()}
    views = []
    for worker in sorted(workers, key=lambda worker: worker.name):
        clip, speed = clips.get(worker.checkpoint), worker.speed
        seconds = None if speed is None or clip is None else round(speed.seconds(clip) - speed.per_job, 3)
        views.append(_worker_view(worker, worker.name in draining, seconds))
    return WorkerList(data=views, problems=services.hints.problems())


@router.post("/admin/workers/{worker}/drain", response_model=WorkerView, summary="Drain a worker")
def drain_worker(worker: WorkerName, services: ServicesOf, principal: Admin) -> WorkerView:
    """Let a worker finish its job and take no other, until it is resumed or restarted."""
    return _set_draining(worker, services, True)


@router.post("/admin/workers/{worker}/resume", response_model=WorkerView, summary="Resume a worker")
def resume_worker(worker: WorkerName, services: ServicesOf, principal: Admin) -> WorkerView:
    """Let a drained worker take jobs again."""
    return _set_draining(worker, services, False)


def _set_draining(name: str, services: Services, draining: bool) -> WorkerView:
    known = next((worker for worker in _workers(services) if worker.name == name), None)
    if known is None:
        raise ApiError("not_found", "There is no such worker.")
    services.hints.drain(name, draining)
    return _worker_view(known, draining, None)


@router.get("/admin/queue", response_model=QueueList, summary="Look at the queue")
def get_queue(services: ServicesOf, principal: Admin) -> QueueList:
    """The waiting jobs of each checkpoint, in the order in which they start."""
    queues = []
    for model in sorted({*read_cards(services.store), *services.index.unfinished_checkpoints()}):
        snapshot = services.hints.snapshot(model)
        if snapshot is None:
            raise ApiError("busy", "Redis does not answer, so the queue is not known; try again.")
        shown = []
        for position, waiting in enumerate(snapshot.waiting[:MOST_QUEUED_SHOWN], start=1):
            start, finish = snapshot.estimate(waiting.id) or (None, None)
            shown.append(
                QueuedJob(
                    id=waiting.id,
                    owner=waiting.owner,
                    priority=waiting.priority,
                    position=position,
                    begun=waiting.begun,
                    estimated_start_at=start,
                    estimated_finish_at=finish,
                )
            )
        queues.append(
            QueueView(
                model=model,
                workers=len(snapshot.workers),
                running=len(snapshot.running),
                waiting=snapshot.count,
                data=shown,
            )
        )
    return QueueList(data=queues)


@router.get("/admin/owners", response_model=OwnerList, summary="List keys with their use")
def list_owners(services: ServicesOf, principal: Admin) -> OwnerList:
    """All keys, and all other owners of jobs, with their use by state and day."""
    services.index.refresh()
    keys = {key.id: key for key in list_keys(services.store)}
    owners = services.index.owners() | keys.keys() | ({ANONYMOUS_OWNER} if not keys else set())
    return OwnerList(data=[_owner_view(owner, keys.get(owner), services) for owner in sorted(owners)])


def _owner_view(owner: str, key: ApiKey | None, services: Services) -> OwnerView:
    return OwnerView(
        **usage_of(owner, services).model_dump(),
        name=key and key.name,
        scopes=[] if key is None else sorted(key.scopes),
        limits={} if key is None else key.limits.model_dump(),
        created_at=key and key.created_at,
        revoked_at=key and key.revoked_at,
    )
