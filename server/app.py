"""The application: puts together the routes, the middleware and what they work with. Never imports torch."""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
import sys
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import Final

import uvicorn
from fastapi import FastAPI

from contract.settings import Settings
from contract.version import installed_version
from jobs.artifacts import SCRATCH_AGE_S
from jobs.clock import Clock, ClockNotTrusted
from jobs.journal import Journal
from jobs.kept_files import KeptFiles
from jobs.queue import JobQueue
from jobs.storage import StoreRefusedError, open_store
from jobs.traces import TracesNotInstalledError, open_traces
from server import errors
from server.access import why_not_to_start
from server.decoding.sandbox import Sandbox
from server.decoding.seccomp import why_not_to_decode, why_unconfined
from server.delivery.signing import UrlSigner
from server.delivery.signing_secrets import SigningSecrets
from server.delivery.standard_webhooks import webhook_secret
from server.delivery.webhooks import WebhookSender
from server.fetch import Fetcher
from server.guard import Guard
from server.hints import Hints
from server.idempotency import IdempotencyKeys
from server.index import JobIndex
from server.index_copy import IndexCopy
from server.keys import any_keys
from server.loop_lag import measure_lag
from server.metrics import Metrics
from server.openapi_document import Application, operation_name
from server.protocol import protocol_of_server
from server.routes import (
    admin,
    derived,
    examples,
    files,
    health,
    jobs,
    kept_files,
    limits,
    pages,
    streaming,
    videos,
    webhooks,
)
from server.services import Services
from server.storage_probe import StorageProbe
from server.submit.receive import SUBMIT_FOLDER

log = logging.getLogger(__name__)
INDEX_EVERY_S: Final = 1.0
IO_THREADS: Final = 32
SWITCH_INTERVAL_S: Final = 0.0005
"""How long the event loop may wait for a computing thread, which it does after every call into the kernel."""
EXPIRE_EVERY_S: Final = 3600.0
GRACEFUL_STOP_S: Final = 5
MOST_CONNECTIONS: Final = 2000


class StartRefusedError(RuntimeError):
    """The configuration is not safe to serve; the message says what to change."""


def _services(settings: Settings) -> Services:
    if settings.redis_url is None:
        raise StartRefusedError(
            "COINTERACT_REDIS_URL is not set; `cointeract up` starts a private Redis and sets it."
        )
    try:
        store = open_store(settings)
    except StoreRefusedError as error:
        raise StartRefusedError(str(error)) from error
    queue = JobQueue(settings, settings.redis_url)
    hints = Hints(queue)
    index = JobIndex(store, settings.max_queued_jobs, IndexCopy(settings.machine_dir))
    fetcher = Fetcher(settings.fetch_timeout_s, private=settings.private_networks)
    try:
        secret = webhook_secret(store, settings.webhook_secret)
    except ValueError as error:
        raise StartRefusedError(f"COINTERACT_WEBHOOK_SECRET: {error}") from error
    try:
        traces = open_traces(settings, "cointeract-api")
    except TracesNotInstalledError as error:
        raise StartRefusedError(str(error)) from error
    metrics = Metrics()
    return Services(
        traces=traces,
        settings=settings,
        store=store,
        journal=Journal(store),
        hints=hints,
        index=index,
        sandbox=Sandbox(settings),
        fetcher=fetcher,
        idempotency=IdempotencyKeys(store),
        signer=UrlSigner(store),
        metrics=metrics,
        webhooks=WebhookSender(
            store, index, hints, fetcher, SigningSecrets(store, secret), settings.base_url, metrics
        ),
        clock=Clock(store, queue.redis),
        storage=StorageProbe(store, settings.min_free_bytes),
    )


def _learn_speeds(services: Services) -> None:
    snapshots = {name: services.hints.snapshot(name) for name in services.index.unfinished_checkpoints()}
    known = {name: snapshot.speed for name, snapshot in snapshots.items() if snapshot is not None}
    services.index.learn_speeds({name: speed for name, speed in known.items() if speed is not None})


async def _keep_up(services: Services) -> None:
    """Refresh the index and send webhooks every second; forget old claims every hour. Errors are logged."""
    expired_at, working = -EXPIRE_EVERY_S, True
    while True:
        try:
            await asyncio.to_thread(services.index.keep_up)
            await asyncio.to_thread(_learn_speeds, services)
            await services.webhooks.round()
            if time.monotonic() - expired_at > EXPIRE_EVERY_S:
                expired_at = time.monotonic()
                await asyncio.to_thread(services.index.save_copy)
                await asyncio.to_thread(_forget_old, services)
            working = True
        except OSError as error:
            if working:
                log.error("storage fails: %s", error)
            working = False
        except Exception:  # whatever it is, the next round must come
            log.exception("the index could not catch up with storage")
        await asyncio.sleep(INDEX_EVERY_S)


def _why_not_to_serve(services: Services) -> str | None:
    """The reason why this configuration is unsafe, or None."""
    settings = services.settings
    strangers = why_not_to_start(settings, any_keys(services.store))
    return strangers or why_not_to_decode(settings.allow_unconfined_decoding)


def _forget_old(services: Services) -> None:
    """Raises OSError."""
    try:
        now = services.clock.now()
    except ClockNotTrusted as reason:
        log.error("%s", reason)
        return
    services.idempotency.expire(now)
    KeptFiles(services.store).expire(now)
    services.index.expire(now)
    # With S3 this machine has a scratch folder of its own. Attempts in it are the workers' affair.
    services.store.remove_leftovers(now, SCRATCH_AGE_S, lambda name: not name.startswith(SUBMIT_FOLDER))


def create_app(settings: Settings) -> FastAPI:
    """The application. Raises StartRefusedError, here or at start-up, for a configuration that is unsafe."""
    services = _services(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        reason = _why_not_to_serve(services)
        if reason is not None:
            log.critical(reason)
            raise StartRefusedError(reason)
        if not any_keys(services.store):
            log.warning(
                "No API keys: everybody who reaches %s:%d may use the service.", settings.host, settings.port
            )
        if (missing := why_unconfined()) is not None:
            log.warning("%s.", missing)
        services.stopping.clear()
        # Most threads wait for the disk. By default there are few, which one tenant's fsyncs would fill.
        asyncio.get_running_loop().set_default_executor(
            ThreadPoolExecutor(IO_THREADS, thread_name_prefix="io")
        )
        try:
            await asyncio.to_thread(services.index.refresh)
        except OSError as error:  # what can be answered without storage is answered
            log.error("storage fails: %s", error)
        await services.sandbox.start()
        background = [
            asyncio.create_task(_keep_up(services)),
            asyncio.create_task(measure_lag(services.metrics.loop_lag)),
        ]
        try:
            yield
        finally:
            services.stopping.set()
            for task in background:
                task.cancel()
            await services.webhooks.stop()
            await services.sandbox.stop()
            await asyncio.to_thread(services.traces.close)

    app = Application(
        title="CoInteract Server",
        description="Photos of a person and a product, prompts and speech in; a video of the presenter out.",
        version=installed_version(),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=operation_name,
    )
    app.state.services = services
    errors.install(app)
    app.include_router(jobs.router)
    app.include_router(files.router)
    app.include_router(kept_files.router)
    app.include_router(derived.router)
    app.include_router(streaming.router)
    app.include_router(examples.router)
    app.include_router(videos.router)
    app.include_router(webhooks.router)
    app.include_router(health.router)
    app.include_router(limits.router)
    app.include_router(admin.router)
    app.include_router(pages.router)
    app.add_middleware(Guard, services=services)
    return app


def serve(settings: Settings) -> None:
    """Run the application until SIGTERM or SIGINT. Raises StartRefusedError."""
    app = create_app(settings)
    reason = _why_not_to_serve(app.state.services)
    if reason is not None:
        raise StartRefusedError(reason)
    _allow_many_connections()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.collect()
    gc.freeze()  # what is loaded now stays, so no collection need look at it again
    with suppress(KeyboardInterrupt):  # uvicorn raises it again after it has stopped in good order
        uvicorn.Server(uvicorn_config(app, settings.host, settings.port)).run()


def uvicorn_config(app: FastAPI, host: str, port: int) -> uvicorn.Config:
    """How uvicorn serves the application."""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        http=protocol_of_server(MOST_CONNECTIONS),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=GRACEFUL_STOP_S,
    )


def _allow_many_connections() -> None:
    """Raise the limit of open files: each connection is one, and the usual limit is low."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_CONNECTIONS * 2
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
