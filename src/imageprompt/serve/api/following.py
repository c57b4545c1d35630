"""For answers that are the pictures themselves: a job followed until it has ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fastapi import Request
from starlette.requests import ClientDisconnect

from imageprompt.serve.admission import DRAINING
from imageprompt.serve.api.common import service_of
from imageprompt.serve.api.jobs import reader_left
from imageprompt.serve.errors import ApiError, Problem
from imageprompt.serve.events import Event
from imageprompt.serve.live_job import Job
from imageprompt.serve.service import Service
from imageprompt.serve.store import ENDED, JobRecord

_CANCELLED = Problem("cancelled", "the job was cancelled")


async def until_ended(
    request: Request,
    job: Job | JobRecord,
    *,
    kept: bool = False,
    tell: Callable[[Event], None] | None = None,
) -> JobRecord:
    """The job when it has ended, whatever its end. `tell` gets its events, with previews.

    A client that leaves cancels it, and so does a server that stops before it began: nobody would
    see its pictures. One that is `kept` goes on: its client comes again with the same
    Idempotency-Key. Raises ApiError, ClientDisconnect.
    """
    service = service_of(request)
    if isinstance(job, JobRecord):
        return job
    service.streams += 1  # a server that drains waits for this answer
    follow = asyncio.create_task(_follow(service, job, tell))
    left = asyncio.create_task(reader_left(request.receive))
    try:
        await asyncio.wait((follow, left), return_when=asyncio.FIRST_COMPLETED)
        if job.ended:
            return job.record
        if not kept:
            await service.cancel(job)
        if left.done():
            raise ClientDisconnect
        raise ApiError(503, DRAINING, retry_after=10)
    finally:
        service.streams -= 1
        for task in (follow, left):
            task.cancel()
        await asyncio.gather(follow, left, return_exceptions=True)


async def _follow(service: Service, job: Job, tell: Callable[[Event], None] | None) -> None:
    if tell is not None:
        async for event in service.events(job):
            if event is not None:
                tell(event)
        return
    while not job.ended:
        if service.admission.draining and job.record.state == "queued":
            return
        await job.log.wait()


def check_done(record: JobRecord) -> None:
    """Raises ApiError for a job that failed or was cancelled."""
    if record.state not in ENDED or record.state == "done":
        return
    problem = record.error or _CANCELLED
    raise ApiError(_status_of(problem), problem)


def _status_of(problem: Problem) -> int:
    if problem == _CANCELLED:
        return 409
    of_the_request = problem.type.startswith("invalid") or problem.type == "missing_upload"
    return 400 if of_the_request else 500
