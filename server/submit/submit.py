"""A submit, step by step: admission, free space, receiving, checking, saving."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

from starlette.requests import Request

from contract.request import FieldError
from contract.state import Job
from server.access import Principal, tenant_of
from server.errors import ApiError, api_error_of
from server.services import Services
from server.shares import NoPlace
from server.submit.check import Checked, check
from server.submit.kept import with_kept
from server.submit.receive import Draft, Scratch, drain, receive, scratch
from server.submit.save import MakeJob, known_job, new_job, save

Receiver = Callable[[Request, Services, Scratch], Awaitable[Draft]]


@asynccontextmanager
async def receiving(request: Request, services: Services, tenant: str) -> AsyncIterator[None]:
    """Take one of the `max_concurrent_uploads` places while a submit is received.

    The rest of a refused request is read for a moment; if it does not end, the connection is closed.
    """
    limit = services.settings.max_concurrent_uploads
    try:
        with services.uploads.place(tenant):
            yield
    except NoPlace as error:
        refusal = ApiError("queue_full", "Too many uploads at once.", limit=limit, retry_after_s=1)
        refusal.close = not await drain(request)
        raise refusal from error
    except FieldError as error:
        refusal = api_error_of(error)
        refusal.close = not await drain(request)
        raise refusal from error
    except ApiError as error:
        error.close = not await drain(request)
        raise


def check_space(services: Services) -> None:
    settings = services.settings
    if services.store.free_bytes() < settings.min_free_bytes + settings.max_upload_bytes:
        raise ApiError(
            "insufficient_storage", "The server is short of disk space.", limit=settings.min_free_bytes
        )


@dataclass(frozen=True)
class Order:
    """A request for a new job, received whole. `check` does what takes long, and may refuse it."""

    fingerprint: str
    check: Callable[[], Awaitable[MakeJob]]


async def place(
    request: Request,
    key: str | None,
    services: Services,
    principal: Principal,
    receive_order: Callable[[Scratch], Awaitable[Order]],
) -> tuple[Job, bool]:
    """Receive, check and store a job, or find the one of an earlier try. Also returns whether it is new."""
    owner = principal.owner
    repeated = key is not None and await services.look(services.idempotency.known, owner, key)
    # A repetition of a stored request needs no place in the queue, so no limit may refuse it.
    admission = nullcontext() if repeated else services.index.admission(owner, principal.limits)
    tenant = tenant_of(principal, request)
    async with receiving(request, services, tenant):
        with admission:
            if not repeated:
                check_space(services)
            async with scratch(services, tenant) as space:
                with services.traces.around("receive"):
                    order = await receive_order(space)
                turn = nullcontext() if key is None else services.idempotency.turn(owner, key)
                async with turn:
                    if key is not None and await services.look(services.idempotency.known, owner, key):
                        known = await asyncio.to_thread(known_job, key, order.fingerprint, services, owner)
                        if known is not None:
                            return known, False
                    with services.traces.around("check"):
                        make = await order.check()
                    job, is_new = await save(make, key, order.fingerprint, services, principal)
                    if is_new:
                        space.folder_became_a_job()
                    return job, is_new


async def submit(
    request: Request, key: str | None, services: Services, principal: Principal, receiver: Receiver = receive
) -> tuple[Job, bool]:
    """Place the order of a whole new video. Also returns whether the job is new."""

    async def receive_order(space: Scratch) -> Order:
        draft = await receiver(request, services, space)
        if draft.references:
            draft = await asyncio.to_thread(with_kept, draft, services, principal)

        async def checked() -> MakeJob:
            result = await check(draft, services, principal, space)
            return partial(new_job, draft, result, services, principal)

        return Order(draft.fingerprint(), checked)

    return await place(request, key, services, principal, receive_order)


async def dry_run(request: Request, services: Services, principal: Principal) -> tuple[Draft, Checked]:
    """Take in and check a submit, and forget it. Raises ApiError, ClientDisconnect."""
    tenant = tenant_of(principal, request)
    async with receiving(request, services, tenant), scratch(services, tenant) as space:
        check_space(services)
        draft = await receive(request, services, space)
        if draft.references:
            draft = await asyncio.to_thread(with_kept, draft, services, principal)
        return draft, await check(draft, services, principal, space)
