"""Server-sent events: lines → events (the WHATWG's event stream format), without input or output."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict

from cointeract_client.types import Job


class Event(BaseModel):
    """Something that happened to a job."""

    model_config = ConfigDict(frozen=True)

    type: str
    """job.submitted, job.started, job.progress, job.clip_finished, job.succeeded, …"""
    id: str | None
    """The event's number. Progress has none."""
    job: Job | None
    """The job at the time of the event; None once it is deleted."""


@dataclass
class EventReader:
    """Turns the lines of a stream into events. Its last id lets a new stream go on from there."""

    last_id: str | None = None
    _type: str = "message"
    _id: str | None = None
    _data: list[str] = field(default_factory=list)

    def line(self, line: str) -> Event | None:
        """Take one line without its end. Returns the event that the line completes."""
        if line:
            name, _, value = line.partition(":")
            self._take(name, value.removeprefix(" "))
            return None
        if not self._data:
            self._forget()
            return None
        data = json.loads("\n".join(self._data))
        job = Job.model_validate(data) if isinstance(data, dict) and "status" in data else None
        event = Event(type=self._type, id=self._id, job=job)
        if self._id is not None:
            self.last_id = self._id
        self._forget()
        return event

    def _take(self, name: str, value: str) -> None:
        if name == "event":
            self._type = value
        elif name == "data":
            self._data.append(value)
        elif name == "id":
            self._id = value

    def _forget(self) -> None:
        self._type, self._id, self._data = "message", None, []
