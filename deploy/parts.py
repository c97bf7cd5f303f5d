"""The parts that `cointeract up` starts: their commands, what they wait for, and their health checks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import httpx
from redis.exceptions import RedisError

from contract.processes import own_process
from contract.settings import Settings
from deploy.stack import Part, StackError, WorkerPlan
from deploy.watchdog import HealthCheck
from jobs.identity import REAPER, pid_of, process_name
from jobs.queue import JobQueue
from jobs.redis_connection import without_password
from jobs.redis_server import RedisServer

LOADING_IS_DEAR = 4.0
"""A worker gets so many times the patience of other parts: a new one would first have to load the model."""


def base_url(settings: Settings) -> str:
    """Where a browser on this machine finds the API."""
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"


def own_command(*arguments: str) -> tuple[str, ...]:
    """The command line that runs `cointeract ARGUMENTS` with this very Python."""
    return own_process("cli.app", *arguments)


def redis_part(settings: Settings, data_dir: Path) -> tuple[Part | None, str]:
    """The embedded Redis unless another one is configured, and the URL to use. Raises StackError."""
    if settings.redis_url is not None:
        try:
            JobQueue(settings, settings.redis_url).ping()
        except RedisError as error:
            raise StackError(
                f"Redis at {without_password(settings.redis_url)} does not answer ({error}). Unset "
                "COINTERACT_REDIS_URL and REDIS_URL to use the embedded one."
            ) from error
        return None, settings.redis_url
    server = RedisServer(data_dir / "redis")
    try:
        command = tuple(server.command)
    except RuntimeError as error:
        raise StackError(f"The embedded Redis cannot start: {error}") from error
    queue = JobQueue(settings, server.url)

    def waiting_for() -> str | None:
        return _unless_redis_fails(queue.ping, "loading its file")

    health = HealthCheck(lambda pid: waiting_for() is None, settings.watchdog_s)
    redis = Part("redis", command, waiting_for, stop_phase=2, health=health, mend=server.mend)
    return redis, server.url


def other_parts(settings: Settings, queue: JobQueue, plans: Sequence[WorkerPlan]) -> list[Part]:
    """API, reaper and workers."""
    health_url = f"{base_url(settings)}/healthz"

    def api_waits_for() -> str | None:
        try:
            answer = httpx.get(health_url, timeout=2.0, trust_env=False)  # our own: never through a proxy
            return None if answer.is_success else "an answer"
        except httpx.HTTPError:
            return "importing"

    def watched(is_healthy: Callable[[int], bool], patience: float = 1.0) -> HealthCheck:
        return HealthCheck(_unless_redis_is_away(is_healthy), patience * settings.watchdog_s)

    def reaper_lives(pid: int) -> bool:
        return queue.is_alive(process_name(REAPER, pid))

    def worker_lives(pid: int) -> bool:
        return any(pid_of(worker.name) == pid for worker in queue.workers())

    api = watched(lambda pid: api_waits_for() is None)
    parts = [
        Part("api", own_command("serve"), api_waits_for, stop_phase=1, health=api),
        Part("reaper", own_command("reaper"), lambda: None, stop_phase=1, health=watched(reaper_lives)),
    ]
    for index, plan in enumerate(plans):
        rank = sum(other.checkpoint == plan.checkpoint for other in plans[: index + 1])
        folder = f"{plan.checkpoint}={plan.folder}"
        arguments = ("worker", "--checkpoint", folder, "--devices", plan.devices)
        parts.append(
            Part(
                plan.name,
                own_command(*arguments),
                _worker_waits_for(queue, plan, rank),
                stop_after_s=settings.stop_grace_s + 5,
                stop_phase=0,
                health=watched(worker_lives, LOADING_IS_DEAR),
            )
        )
    return parts


def _worker_waits_for(queue: JobQueue, plan: WorkerPlan, rank: int) -> Callable[[], str | None]:
    """What a worker waits for. The rank-th worker of a checkpoint is ready when that many are alive."""

    def waiting_for() -> str | None:
        def enough() -> None:
            alive = [worker for worker in queue.workers() if worker.checkpoint == plan.checkpoint]
            if sum(worker.ready for worker in alive) < rank:
                raise LookupError

        return _unless_redis_fails(enough, f"loading {plan.checkpoint} on {plan.devices}")

    return waiting_for


def _unless_redis_is_away(is_healthy: Callable[[int], bool]) -> Callable[[int], bool]:
    """A check that passes while Redis is away: the part cannot report then, and Redis has a watchdog."""

    def checked(pid: int) -> bool:
        try:
            return is_healthy(pid)
        except (RedisError, OSError):
            return True

    return checked


def _unless_redis_fails(check: Callable[[], None], reason: str) -> str | None:
    try:
        check()
    except (RedisError, OSError, LookupError):
        return reason
    return None
