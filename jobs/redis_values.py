"""Values found in Redis, read with distrust: another version of this program may have written them, or
anybody.

What makes no sense is dropped. The reaper makes it anew from the journals.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterable, Mapping
from typing import Annotated, TypeVar

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
    """Delete every key of `types` that is not of the type that belongs there; returns their number.

    Raises RedisError.
    """
    with redis.pipeline(transaction=False) as pipeline:
        for key in types:
            pipeline.type(key)
        found = [kind.decode() for kind in pipeline.execute()]
    wrong = {key: kind for key, kind in zip(types, found, strict=True) if kind not in (types[key], "none")}
    for key, kind in wrong.items():
        log.error("dropped from Redis: %s is a %s where a %s belongs", key, kind, types[key])
    if wrong:
        redis.delete(*wrong)
    return len(wrong)
