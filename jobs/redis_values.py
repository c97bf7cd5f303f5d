"""Values found in Redis, read with distrust: another version of this program may have written them, or
anybody.

What makes no sense is dropped. The reaper makes it anew from the journals.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterable, Mapping
from typing import Annotated, TypeVar, cast

from pydantic import Field, TypeAdapter, ValidationError
from redis import Redis

from contract.frozen import Frozen
from contract.job import Priority
from contract.speed import Speed, Work
from jobs.scheduling import WaitingJob

log = logging.getLogger(__name__)

Hint = TypeVar("Hint", bound=Frozen)

Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]

_WAITING = TypeAdapter(tuple[str, Priority, Amount, int | None, bool, tuple[Amount, Amount]])
_SERVED = TypeAdapter(tuple[str, Amount, str])
_WAITING_FIELDS = 6

_RQ_TYPES = {
    "rq:queue:": "list",
    "rq:queues": "set",
    "rq:workers": "set",
    "rq:worker:": "hash",
    "rq:job:": "hash",
    "rq:wip:": "zset",
    "rq:finished:": "zset",
    "rq:failed:": "zset",
    "rq:deferred:": "zset",
    "rq:scheduled:": "zset",
    "rq:canceled:": "zset",
}


def hint_of(model: type[Hint], data: bytes | None) -> Hint | None:
    """What Redis holds, if it is there and makes sense."""
    if data is None:
        return None
    try:
        return model.stored(data)
    except ValidationError:
        return None


def text_of(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def texts_of(found: Iterable[bytes]) -> list[str]:
    """All that are texts, sorted."""
    return sorted(text for data in found if (text := text_of(data)) is not None)


def speed_of(data: bytes | None) -> Speed | None:
    """A measured speed, if it is one."""
    try:
        return None if data is None else Speed.model_validate_json(data)
    except ValidationError:
        return None


def record_of(waiting: WaitingJob) -> str:
    """What `waiting_of` reads."""
    return json.dumps(dataclasses.astuple(waiting)[1:])


def waiting_of(job_id: bytes, record: bytes) -> WaitingJob | None:
    """The waiting job of a record, if it makes sense. A newer version may have put more at its end."""
    name = text_of(job_id)
    try:
        fields = json.loads(record)
        owner, priority, cost, max_running, begun, work = _WAITING.validate_python(fields[:_WAITING_FIELDS])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return None if name is None else WaitingJob(name, owner, priority, cost, max_running, begun, Work(*work))


def served_of(records: Iterable[bytes]) -> dict[str, float]:
    """Work served by owner."""
    served: dict[str, float] = {}
    for record in records:
        try:
            owner, amount, _ = _SERVED.validate_json(record)
        except ValidationError:
            continue
        served[owner] = served.get(owner, 0.0) + amount
    return served


def drop_wrong_types(redis: Redis, types: Mapping[str, str]) -> int:
    """Delete every key that is not of the type that its name promises; returns their number.

    Args:
        types: Type by beginning of the name, of our own keys. Those of RQ are known here.

    Raises RedisError.
    """
    known = {**types, **_RQ_TYPES}
    dropped = 0
    for prefix in {name.partition(":")[0] for name in known}:
        for key in cast(Iterable[bytes], redis.scan_iter(match=f"{prefix}:*", count=1000)):
            wanted = next((kind for name, kind in known.items() if key.startswith(name.encode())), None)
            found = cast(bytes, redis.type(key)).decode()
            if wanted is not None and found not in (wanted, "none"):
                log.error("dropped from Redis: %r is a %s where a %s belongs", key, found, wanted)
                redis.delete(key)
                dropped += 1
    return dropped
