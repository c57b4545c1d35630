"""A job that waits, runs, or has ended lately; and jobs in the words of the API."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from imageprompt.serve.events import EventLog
from imageprompt.serve.queue import Entry
from imageprompt.serve.store import ENDED, Image, JobRecord
from imageprompt.serve.tracing import JobTrace

API = "/api/v1"


@dataclass
class Job:
    """What is stored of a job, and what only this server knows."""

    record: JobRecord
    entry: Entry
    trace: JobTrace = field(default_factory=JobTrace)
    log: EventLog = field(default_factory=EventLog)
    step: int = 0
    total: int | None = None
    stepped: float = 0.0
    """When the last step was told, by the monotonic clock."""
    cancelling: bool = False
    writes: list[asyncio.Task[None]] = field(default_factory=list)
    """Its pictures on their way to the disk."""

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def ended(self) -> bool:
        return self.record.state in ENDED


def image_dict(job: str, image: Image) -> dict[str, Any]:
    """A picture in the words of the API."""
    return {
        "index": image.index,
        "url": f"{API}/jobs/{job}/result/{image.index}.png",
        "width": image.width,
        "height": image.height,
        "seed": image.seed,
        "bytes": image.bytes,
    }


def past_events(record: JobRecord) -> EventLog:
    """The events of a job that ended before this server began."""
    events = EventLog()
    if record.started is not None:
        events.add("started", attempt=record.attempt)
    for image in record.images:
        events.add("image", **image_dict(record.id, image))
    if record.state in ENDED:
        add_end(events, record)
    return events


def add_end(events: EventLog, record: JobRecord) -> None:
    """The last event of a job that has ended."""
    if record.error is None:
        events.add(record.state, images=len(record.images))
    else:
        events.add(record.state, error=record.error.as_dict())
