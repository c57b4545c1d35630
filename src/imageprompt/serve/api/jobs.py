"""Jobs: taken, listed, followed, cancelled; and their pictures."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response

from imageprompt.serve.api.common import bound, check_streams, once_of, owner_of, service_of
from imageprompt.serve.bodies import read_body
from imageprompt.serve.errors import not_found
from imageprompt.serve.live_job import API, Job, image_dict
from imageprompt.serve.openapi import json_or_form
from imageprompt.serve.request_body import body_schema, checked_request
from imageprompt.serve.service import Service
from imageprompt.serve.sources import JOB
from imageprompt.serve.store import ENDED, JobRecord
from imageprompt.serve.tracing import trace_id

router = APIRouter(tags=["jobs"])


@router.post("/jobs", status_code=202, openapi_extra=json_or_form(body_schema()))
async def take_job(request: Request) -> dict[str, Any]:
    """Take a request into the queue."""
    service, owner = service_of(request), owner_of(request)
    once = once_of(request)
    body = await read_body(request, service.limits)
    checked_request(body.data, service.limits)
    service.admission.check_room(owner)
    data = await bound(service, owner, body.data, body.parts)
    return job_dict(service, await service.submit(data, owner, once=once))


@router.get("/jobs")
async def list_jobs(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    before: Annotated[str | None, Query(pattern=f"^{JOB}$")] = None,
    state: Literal["queued", "running", "done", "failed", "cancelled"] | None = None,
) -> dict[str, Any]:
    """Your jobs, newest first."""
    service = service_of(request)
    found = await service.list(owner_of(request), limit=limit, before=before, state=state)
    jobs = [job_dict(service, job) for job in found]
    return {"jobs": jobs, "next": jobs[-1]["id"] if len(jobs) == limit else None}


@router.get("/jobs/{job}")
async def show_job(request: Request, job: str) -> dict[str, Any]:
    """One job."""
    service = service_of(request)
    return job_dict(service, await service.find(owner_of(request), job))


@router.delete("/jobs/{job}", response_model=None)
async def end_job(request: Request, job: str) -> Response | dict[str, Any]:
    """Cancel a job that waits or runs; delete one that has ended, with its pictures."""
    service, owner = service_of(request), owner_of(request)
    found = await service.find(owner, job)
    if isinstance(found, Job) and not found.ended:
        await service.cancel(found)
        content = job_dict(service, found)
        return _json(content, 202)
    await service.remove(owner, job)
    return Response(status_code=204)


@router.get("/jobs/{job}/events", response_model=None)
async def follow_job(
    request: Request,
    job: str,
    on_disconnect: Literal["cancel", "nothing"] = "nothing",
) -> Response:
    """What happens to a job, as Server-Sent Events."""
    service = service_of(request)
    found = await service.find(owner_of(request), job)
    check_streams(service)
    last_id = request.headers.get("last-event-id", "")

    async def gone() -> None:
        if on_disconnect == "cancel" and isinstance(found, Job):
            await service.cancel(found)

    return EventStream(service, _lines(service, found, last_id), gone)


@router.get("/jobs/{job}/result/{picture}", response_model=None)
async def show_result(request: Request, job: str, picture: str) -> Response:
    """A picture, with its recipe inside."""
    service, owner = service_of(request), owner_of(request)
    number = re.fullmatch(r"(\d{1,4})\.png", picture, re.ASCII)
    if number is None or not re.fullmatch(JOB, job, re.ASCII):
        raise not_found("picture")
    content = await asyncio.to_thread(service.files.read_result, owner, job, int(number[1]))
    if content is None:
        raise not_found("picture")
    return picture_response(content, "image/png", f"{job[:8]}-{int(number[1])}.png")


def picture_response(content: bytes, media_type: str, name: str) -> Response:
    """A picture that never changes, with the type that its content has."""
    headers = {
        "cache-control": "private, max-age=31536000, immutable",
        "content-disposition": f'inline; filename="{name}"',
    }
    return Response(content, media_type=media_type, headers=headers)


# ── a job as JSON ───────────────────────────────────────────────────────────────────────────────


def job_dict(service: Service, job: Job | JobRecord) -> dict[str, Any]:
    """A job in the words of the API."""
    live = job if isinstance(job, Job) else None
    record = job.record if isinstance(job, Job) else job
    url = f"{API}/jobs/{record.id}"
    report = {"report": f"{url}/report"} if "workflow" in record.request else {}
    return {
        "id": record.id,
        "state": record.state,
        "position": None if live is None else service.position(live),
        "created": record.created,
        "started": record.started,
        "ended": record.ended if record.state in ENDED else None,
        "attempt": record.attempt,
        "trace": trace_id(record.trace),
        "step": 0 if live is None else live.step,
        "total": None if live is None else live.total,
        "request": record.request,
        "images": [image_dict(record.id, image) for image in record.images],
        "error": None if record.error is None else record.error.as_dict(),
        "urls": {"self": url, "events": f"{url}/events", **report},
    }


def _json(content: Any, status: int) -> Response:
    from fastapi.responses import JSONResponse

    return JSONResponse(content, status_code=status)


# ── events ──────────────────────────────────────────────────────────────────────────────────────


async def _lines(service: Service, job: Job | JobRecord, last_id: str) -> AsyncIterator[bytes]:
    async for event in service.events(job, last_id):
        yield b": ping\n\n" if event is None else event.as_sse(service.epoch)


class EventStream(Response):
    """Sends lines until there are no more, or until the reader has left, which it notices at once.

    `gone` is awaited if the reader left before the end.
    """

    def __init__(
        self,
        service: Service,
        lines: AsyncIterator[bytes],
        gone: Callable[[], Awaitable[None]],
    ) -> None:
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(headers=headers, media_type="text/event-stream")
        del self.headers["content-length"]
        self._service, self._lines, self._gone = service, lines, gone

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self._service.streams += 1
        self._service.metrics.streams.set(self._service.streams)
        tell = asyncio.create_task(self._tell(send))
        left = asyncio.create_task(reader_left(receive))
        try:
            await asyncio.wait((tell, left), return_when=asyncio.FIRST_COMPLETED)
            whole = tell.done() and not tell.cancelled() and tell.exception() is None
        except asyncio.CancelledError:
            whole = False
            raise
        finally:
            self._service.streams -= 1
            self._service.metrics.streams.set(self._service.streams)
            for task in (tell, left):
                task.cancel()
            await asyncio.gather(tell, left, return_exceptions=True)
            if not whole:
                await self._gone()

    async def _tell(self, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for line in self._lines:
            await send({"type": "http.response.body", "body": line, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def reader_left(receive: Any) -> None:
    """Until the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
