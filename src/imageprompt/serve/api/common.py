"""What several routes need: who asks, the service, pictures bound to what is kept."""

from __future__ import annotations

import asyncio
import copy
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

from fastapi import Request

from imageprompt.core.errors import ImagePromptError
from imageprompt.serve import sources
from imageprompt.serve.errors import ApiError, Problem, bad_request, param_of, problem_of
from imageprompt.serve.request_body import pairs_apart
from imageprompt.serve.service import Service

TASK_SECONDS = 300.0
"""How long a client waits for a task of the worker."""
_ONCE = re.compile(r"[\x21-\x7e]{1,200}")


def service_of(request: Request) -> Service:
    return cast(Service, request.app.state.service)


def owner_of(request: Request) -> str:
    return cast(str, request.state.owner)


def once_of(request: Request) -> str | None:
    """The Idempotency-Key. Raises ApiError."""
    once = request.headers.get("idempotency-key")
    if once is not None and not _ONCE.fullmatch(once):
        raise bad_request("Idempotency-Key: not 1 to 200 printable characters without spaces")
    return once


def check_streams(service: Service) -> None:
    """May one more client wait for events? Raises ApiError."""
    if service.streams >= service.limits.streams:
        problem = Problem("queue_full", "too many event streams", None, "Close some.")
        raise ApiError(429, problem, retry_after=10)


async def bound(
    service: Service, owner: str, data: Mapping[str, Any], parts: Mapping[str, bytes]
) -> dict[str, Any]:
    """A checked request with all its pictures kept as uploads, and each pair as two references.

    Raises ApiError.
    """
    found = copy.deepcopy(dict(data))
    kept: dict[str, str] = {}
    for place, holder, key in list(sources.places(found)):
        source = holder[key]
        if sources.kind_of(source) in ("part", "result"):
            if source not in kept:
                content = await _content(service, owner, place, source, parts)
                kept[source] = await keep(service, owner, content, place)
            holder[key] = kept[source]
    unused = [name for name in parts if f"part:{name}" not in kept]
    if unused:
        name = unused[0][:60]
        raise bad_request(
            f"part {name!r}: nothing in the request names it",
            param=name,
            hint=f"Write part:{name} where the picture belongs.",
        )
    if found.get("references"):
        service.admission.check_parts(found["references"])
        found["references"] = pairs_apart(found["references"])
    return found


async def _content(
    service: Service, owner: str, place: str, source: str, parts: Mapping[str, bytes]
) -> bytes:
    name = source.partition(":")[2]
    if sources.kind_of(source) == "part":
        if name not in parts:
            raise bad_request(f"{place}: no part {name!r} in this body", param=place)
        return parts[name]
    job, _, index = name.partition("/")
    content = await asyncio.to_thread(service.files.read_result, owner, job, int(index))
    if content is None:
        raise bad_request(f"{place}: no such picture", type="missing_upload", param=place)
    return content


async def keep(service: Service, owner: str, content: bytes, place: str | None) -> str:
    """Keep a picture; returns `upload:HASH`. Raises ApiError."""
    upload = await keep_upload(service, owner, content, place)
    return f"upload:{upload.hash}"


async def keep_upload(service: Service, owner: str, content: bytes, place: str | None) -> Any:
    service.admission.check_disk()
    async with service.decoding:
        with storage_errors():
            return await asyncio.to_thread(service.files.keep, owner, content, place)


@contextmanager
def storage_errors() -> Iterator[None]:
    """What the disk refuses is a 503."""
    try:
        yield
    except OSError as error:
        problem = Problem("storage", "the server cannot write to its disk", None, "Try later.")
        raise ApiError(503, problem, retry_after=60) from error


@contextmanager
def places_renamed(rename: Callable[[str], str]) -> Iterator[None]:
    """Errors inside name the place as the client did."""
    try:
        yield
    except ApiError as error:
        problem = error.problem
        if problem.param is None:
            raise
        param, message = rename(problem.param), problem.message
        if message.startswith(problem.param):
            message = param + message.removeprefix(problem.param)
        changed = Problem(problem.type, message, param or None, problem.hint)
        raise ApiError(error.status, changed, retry_after=error.retry_after) from error


def wrong_option(place: str, reason: str, hint: str = "") -> ApiError:
    """A 400 about a value."""
    return bad_request(f"{place}: {reason}", type="invalid_option", param=place, hint=hint)


@contextmanager
def library_errors(*names: str) -> Iterator[None]:
    """Typed errors of the library as answers; those about one of the fields `names` say so."""
    try:
        yield
    except ImagePromptError as error:
        problem = problem_of(error, param_of(error, names))
        raise ApiError(404 if problem.type == "not_found" else 400, problem) from error
