"""One address for several servers: which of them answers a request.

Each server has its own jobs; all have the same base, adapters and library. A request goes to the
server that has most likely encoded its references already, by rendezvous hashing, unless many more
jobs wait there than elsewhere; what is about a job, to the server that has it, which the first two
digits of the job's id tell.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncIterator, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, Protocol
from urllib.parse import parse_qs

from starlette.requests import Request

from imageprompt.serve.api.jobs import reader_left
from imageprompt.serve.bodies import REQUEST_PART, content_type, read_form
from imageprompt.serve.errors import ApiError, Problem
from imageprompt.serve.files import media_type
from imageprompt.serve.guard import SAFE_METHODS, Receive, Scope, Send
from imageprompt.serve.live_job import API
from imageprompt.serve.settings import Limits
from imageprompt.serve.sources import JOB

Message = MutableMapping[str, Any]
MOST = 256
"""Servers: two digits of a job's id."""
AHEAD = 8
"""Jobs that may wait at a server more than elsewhere before its references are encoded there."""
_OF_A_JOB = re.compile(rf"{API}/jobs/({JOB})(?:/|$)", re.ASCII)
_NAMED = re.compile(rf"result:({JOB})/".encode(), re.ASCII)
_KEPT_BY_ALL = (f"{API}/uploads", f"{API}/recipe", "/v1/files")
"""Pictures that any server may be asked for later."""
_STATEFUL = ("/sdapi/", "/controlnet/")
"""APIs whose clients ask for `their` progress, without an id."""
_ENCODED = (
    *("base", "model", "adapter", "style", "reference", "image_prompt", "ip_adapter"),
    *("image", "images", "alwayson_scripts"),
)
"""Fields of all APIs that tell what has to be encoded."""


class Lost(Exception):
    """A server has ended before its answer was whole."""


class Replica(Protocol):
    """A server, wherever it runs."""

    def answer(self, scope: Mapping[str, Any], body: bytes) -> AsyncIterator[Message]:
        """The ASGI messages of its answer. Raises Lost."""

    async def waiting(self) -> int | None:
        """How many jobs wait there; None if it does not work, or has not answered for a while."""


def mark_of(number: int) -> str:
    """How the ids of the jobs of a server begin."""
    return f"{number:02x}"


def by_affinity(key: bytes, count: int) -> list[int]:
    """All servers, the best for a key first; when one is away, only its keys move."""

    def weight(number: int) -> bytes:
        return hashlib.sha256(key + b"/%d" % number).digest()

    return sorted(range(count), key=weight)


class Router:
    """The ASGI app before the servers."""

    def __init__(self, replicas: Sequence[Replica], limits: Limits) -> None:
        self._replicas, self._limits = replicas, limits
        self.alive: dict[int, int] = {}
        """The servers that work, and how many jobs wait there, as far as is known."""
        self._unseen = set(range(len(replicas)))

    async def watch(self, seconds: float) -> None:
        """Look after the servers, for ever."""
        while True:
            await self.look()
            await asyncio.sleep(seconds)

    async def look(self) -> None:
        found = await asyncio.gather(*(one.waiting() for one in self._replicas))
        self.alive = {number: jobs for number, jobs in enumerate(found) if jobs is not None}
        self._unseen -= self.alive.keys()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await Request(scope, receive).body()
        path, headers = scope["path"], Request(scope).headers
        if path == "/readyz" and (self._unseen or not self.alive):
            raise _away()
        if path == f"{API}/jobs" and scope["method"] in SAFE_METHODS:
            await self._list(scope, send)
        elif path in _KEPT_BY_ALL and scope["method"] == "POST":
            await self._tell_all(scope, body, send)
        else:
            order, final = await self._order(scope, headers, body)
            answering = self._first_that_answers(order, scope, body, final=final)
            await _forward(answering, receive, send)

    # ── whom to ask ─────────────────────────────────────────────────────────────────────────────

    async def _order(
        self, scope: Scope, headers: Mapping[str, str], body: bytes
    ) -> tuple[list[int], bool]:
        """Whom to ask, one after another; and whether the first has the last word."""
        path, count = scope["path"], len(self._replicas)
        named = parse_qs(scope["query_string"].decode("latin-1")).get("replica", [""])[0]
        if named.isdecimal() and int(named) < count:
            return [int(named)], True
        if (owner := _OF_A_JOB.match(path) or _NAMED.search(body)) is not None:
            number = int(owner[1][:2], 16)
            if number < count:
                return [number], True
        if scope["method"] in SAFE_METHODS or path.startswith(_STATEFUL):
            return by_affinity(headers.get("authorization", "").encode(), count), False
        key, once = await self._encoded(scope, body), headers.get("idempotency-key")
        if once is not None:  # repeated, it has to come to the same server
            return by_affinity(key or once.encode(), count), True
        order = self._by_load(by_affinity(key, count) if key else range(count))
        if order and order[0] in self.alive:
            self.alive[order[0]] += 1
        return order, False

    def _by_load(self, order: Sequence[int]) -> list[int]:
        """Those at which too many jobs wait come last; without an order, the idle ones first."""
        jobs = [self.alive.get(number, 0) for number in range(len(self._replicas))]
        if isinstance(order, range):
            return sorted(order, key=lambda number: jobs[number])
        least = min(self.alive.values(), default=0)
        return sorted(order, key=lambda number: jobs[number] > least + AHEAD)

    async def _encoded(self, scope: Scope, body: bytes) -> bytes:
        """What a body says that has to be encoded; empty if there is nothing.

        What is wrong in it, the server tells.
        """
        request = Request(scope, _receive_of(body))
        try:
            if content_type(request) != "multipart/form-data":
                return _key([*_named(json.loads(body))])
            found: list[Any] = []
            for name, content in await read_form(request, self._limits):
                if name == REQUEST_PART:
                    found += _named(json.loads(content))
                elif name.removesuffix("[]") in _ENCODED or media_type(content) is not None:
                    found.append([name, hashlib.sha256(content).hexdigest()])
            return _key(found)
        except (ApiError, ValueError, RecursionError):
            return b""

    # ── answers ─────────────────────────────────────────────────────────────────────────────────

    async def _first_that_answers(
        self, order: Sequence[int], scope: Scope, body: bytes, *, final: bool
    ) -> AsyncIterator[Message]:
        """The answer of the first server that has room, or what was asked for.

        Another is asked only before the first byte. Raises ApiError, and Lost after it.
        """
        present = [number for number in order[: 1 if final else None] if number in self.alive]
        begun = False
        for number in present:
            answer = self._replicas[number].answer(_plain(scope), body)
            try:
                first = [await anext(answer)]
                if first[0]["status"] == 400:  # short, and tells whether an upload is elsewhere
                    first += [message async for message in answer]
                if number != present[-1] and _ask_another(scope, first):
                    continue
                begun = True
                for message in first:
                    yield message
                async for message in answer:
                    yield message
                return
            except (Lost, StopAsyncIteration):
                self.alive.pop(number, None)
                if begun:
                    raise Lost from None
            finally:
                await answer.aclose()  # type: ignore[attr-defined]
        raise _away()

    async def _whole(
        self, number: int, scope: Scope, body: bytes
    ) -> tuple[int, Sequence[Message], Any]:
        """Status, messages and JSON of an answer; 503 if there is none."""
        try:
            found = self._first_that_answers([number], scope, body, final=True)
            messages = [message async for message in found]
        except (ApiError, Lost):
            return 503, (), None
        content = b"".join(message.get("body", b"") for message in messages)
        try:
            return messages[0]["status"], messages, json.loads(content)
        except ValueError:
            return messages[0]["status"], messages, None

    async def _all(self, scope: Scope, body: bytes) -> list[tuple[int, Sequence[Message], Any]]:
        numbers = range(len(self._replicas))
        return list(await asyncio.gather(*(self._whole(one, scope, body) for one in numbers)))

    async def _tell_all(self, scope: Scope, body: bytes, send: Send) -> None:
        """The best answer of all servers: they keep the same picture."""
        status, messages, _ = min(await self._all(scope, body), key=lambda one: one[0])
        if status == 503 and not messages:
            raise _away()
        for message in messages:
            await send(message)

    async def _list(self, scope: Scope, send: Send) -> None:
        """The newest jobs of all servers, on one page."""
        query = parse_qs(scope["query_string"].decode("latin-1"))
        answers = await self._all(scope, b"")
        wrong = next((m for status, m, _ in answers if status not in (200, 503)), None)
        if wrong is not None:
            for message in wrong:
                await send(message)
            return
        pages = [page["jobs"] for status, _, page in answers if status == 200]
        if not pages:
            raise _away()
        jobs = sorted((job for page in pages for job in page), key=lambda job: -job["created"])
        limit = int(query.get("limit", ["50"])[0])
        content = json.dumps({"jobs": jobs[:limit], "next": None}).encode()
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})


def _away() -> ApiError:
    problem = Problem("not_ready", "the server for this is starting", None, "Try again.")
    return ApiError(503, problem, retry_after=5)


def _ask_another(scope: Scope, answer: Sequence[Message]) -> bool:
    """Has a server refused what another may have, or have room for?"""
    status = answer[0]["status"]
    if status == 400:
        return any(b'"missing_upload"' in message.get("body", b"") for message in answer)
    return status in (429, 503) or (status == 404 and scope["method"] in SAFE_METHODS)


def _key(found: Sequence[Any]) -> bytes:
    return json.dumps(found).encode() if found else b""


def _named(data: Any) -> Iterator[Any]:
    """The values of the fields that tell what has to be encoded, at any depth."""
    if isinstance(data, dict):
        for name, value in sorted(data.items()):
            if name in _ENCODED:
                yield [name, value]
            else:
                yield from _named(value)
    elif isinstance(data, list):
        for value in data:
            yield from _named(value)


def _plain(scope: Scope) -> dict[str, Any]:
    """What of a scope can travel."""
    names = ("type", "http_version", "method", "scheme", "path", "raw_path", "query_string")
    kept = {name: scope[name] for name in names if name in scope}
    headers = [(bytes(name), bytes(value)) for name, value in scope["headers"]]
    return {**kept, "headers": headers, "root_path": "", "asgi": {"version": "3.0"}}


def _receive_of(body: bytes) -> Receive:
    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


async def _forward(answering: AsyncIterator[Message], receive: Receive, send: Send) -> None:
    """Send an answer on; when the reader leaves, the server is told by the end of the iterator."""

    async def tell() -> None:
        async for message in answering:
            await send(message)

    told, left = asyncio.create_task(tell()), asyncio.create_task(reader_left(receive))
    try:
        await asyncio.wait((told, left), return_when=asyncio.FIRST_COMPLETED)
        if told.done():
            told.result()
    finally:
        for task in (told, left):
            task.cancel()
        await asyncio.gather(told, left, return_exceptions=True)


# ── the other end ───────────────────────────────────────────────────────────────────────────────


async def answers_of(app: Any, scope: Mapping[str, Any], body: bytes) -> AsyncIterator[Message]:
    """The messages of an ASGI app; to it, the end of the iteration is that of the connection."""
    messages: asyncio.Queue[Message | None] = asyncio.Queue(16)
    gone, asked = asyncio.Event(), False

    async def receive() -> Message:
        nonlocal asked
        if not asked:
            asked = True
            return {"type": "http.request", "body": body, "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def run() -> None:
        try:
            await app(dict(scope), receive, messages.put)
        finally:
            await messages.put(None)

    running = asyncio.create_task(run())
    try:
        while (message := await messages.get()) is not None:
            yield message
        await running
    finally:
        gone.set()
        while not running.done():
            if not messages.empty():
                messages.get_nowait()
            await asyncio.sleep(0.01)
        if not running.cancelled():
            running.exception()  # told above, or nobody is left to hear it
