"""`cointeract healthy`: the health check of a container, run inside the container."""

from __future__ import annotations

import httpx
from redis.exceptions import RedisError

from contract.settings import Settings
from deploy.parts import base_url
from jobs.identity import lives_here
from jobs.queue import JobQueue


def why_api_is_unhealthy(settings: Settings) -> str | None:
    """The reason why the API on this host does not answer; None if it does."""
    url = f"{base_url(settings)}/healthz"
    try:
        response = httpx.get(url, timeout=3.0, trust_env=False)  # our own: never through a proxy
    except httpx.HTTPError as error:
        return f"{url}: {error or type(error).__name__}"
    return None if response.is_success else f"{url}: HTTP {response.status_code}"


def why_worker_is_unhealthy(settings: Settings, redis_url: str) -> str | None:
    """The reason why no worker on this host has a loaded model and a live lease; None if one has."""
    try:
        workers = JobQueue(settings, redis_url).workers()
    except RedisError as error:
        return f"Redis: {error}"
    here = [worker for worker in workers if lives_here(worker.name)]
    if any(worker.ready for worker in here):
        return None
    for worker in here:
        if worker.problem is not None:
            return worker.problem
    return "The worker is loading its model." if here else "No worker of this host is alive."
