"""What every request passes before a route sees it: its host, its origin, its key, its body."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect

from imageprompt.core.errors import ImagePromptError
from imageprompt.serve.dialects import dialect_of
from imageprompt.serve.errors import ApiError, Problem, bad_request
from imageprompt.serve.files import too_large
from imageprompt.serve.keys import LOCAL, Keys
from imageprompt.serve.metrics import Metrics
from imageprompt.serve.rate_limit import RateLimit
from imageprompt.serve.settings import Settings, is_address
from imageprompt.serve.tracing import Tracing, note

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

SLOWEST = 64 * 2**10
"""Bytes a second at which a body may arrive."""
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
METRICS = "/metrics"
OPEN_PATHS = ("/healthz", "/readyz")
"""Routes that need no key, beside the files of the page."""
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = (
    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
)

INTERNAL = Problem("internal", "an error of the server", None, "Its log has the details.")

log = logging.getLogger("imageprompt.serve.requests")


class Guard:
    """ASGI middleware around the whole app: a route that is added later is guarded, too."""

    def __init__(
        self,
        app: App,
        settings: Settings,
        metrics: Metrics,
        open_paths: Iterable[str],
        clock: Callable[[], float] = time.monotonic,
        tracing: Tracing | None = None,
    ) -> None:
        self._app, self._limits, self._metrics = app, settings.limits, metrics
        self._open = {*OPEN_PATHS, *open_paths}
        self._keys = None if settings.keys is None else Keys(settings.keys_file)
        often = settings.requests_per_minute
        self._rate = None if often is None else RateLimit(often, clock)
        names = ("localhost", settings.host, *settings.allow_host)
        self._names = {name.lower().rstrip(".") for name in names}
        self._tracing = tracing or Tracing()
        self._untraced = {*self._open, METRICS}
        self._reading = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # there are no websockets here
            await send({"type": "websocket.close", "code": 1008})
            return
        reply = _Reply(send, scope)
        tracing = self._tracing if scope["path"] not in self._untraced else Tracing()
        with tracing.request(scope, lambda: reply.status):
            await self._answer(scope, receive, reply)

    async def _answer(self, scope: Scope, receive: Receive, reply: _Reply) -> None:
        began = time.perf_counter()
        body = _Body(self, scope, receive)
        try:
            self._check(scope)
            await self._app(scope, body.receive, reply.send)
        except ApiError as error:
            await reply.refuse(error)
        except ClientDisconnect:
            pass
        except Exception:
            log.exception("an error of the server%s", note(self._tracing.parent()))
            await reply.refuse(ApiError(500, INTERNAL))
        finally:
            body.done()
            route = getattr(scope.get("route"), "path", "none")
            self._metrics.requests.labels(route, str(reply.status)).inc()
            log.info(
                "%s %s %d, %d bytes in, %.0f ms%s",
                *(scope["method"] if scope["method"].isalpha() else "?", route, reply.status),
                *(body.count, 1000 * (time.perf_counter() - began)),
                note(self._tracing.parent()),
            )

    # ── who asks ────────────────────────────────────────────────────────────────────────────────

    def _check(self, scope: Scope) -> None:
        """Host, origin, key, and how often it asks. Raises ApiError. Sets the owner."""
        headers = _headers(scope)
        host = headers.get("host", "")
        if not self._knows(host):
            raise bad_request(
                "this name is not one of the server's",
                type="invalid_host",
                hint="Start it with --allow-host NAME.",
            )
        if scope["method"] not in SAFE_METHODS:
            origin = headers.get("origin")
            if origin is not None and not _same(origin, host):
                problem = Problem("foreign_origin", "a page of another site sent this")
                raise ApiError(403, problem)
        owner = self._owner(scope, headers)
        scope.setdefault("state", {})["owner"] = owner
        if scope["path"] not in self._open:
            self._count(owner)

    def _knows(self, host: str) -> bool:
        """An address, or a name that is listed: names can be made to point here by anybody."""
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower().rstrip(".")
        except ValueError:
            return False
        return bool(name) and (is_address(name) or name in self._names)

    def _owner(self, scope: Scope, headers: MutableMapping[str, str]) -> str:
        if self._keys is None:
            return LOCAL
        secret = dialect_of(scope["path"]).secret(headers.get("authorization", ""))
        owner = None
        if secret is not None:
            try:
                owner = self._keys.owner(secret)
            except ImagePromptError as error:
                log.error("%s", error)
        if owner is not None:
            return owner
        if scope["path"] in self._open and scope["method"] in SAFE_METHODS:
            return ""
        problem = Problem(
            "unauthorized",
            "no key, or one that is not known",
            None,
            "Send Authorization: Bearer KEY.",
        )
        raise ApiError(401, problem)

    def _count(self, owner: str) -> None:
        """One more request of a key. Raises ApiError if it asks too often."""
        if self._rate is None:
            return
        seconds = self._rate.take(owner)
        if seconds > 0:
            self._metrics.too_often.inc()
            problem = Problem("rate_limit", "this key asks too often", None, "Try again later.")
            raise ApiError(429, problem, retry_after=math.ceil(seconds))

    # ── bodies ──────────────────────────────────────────────────────────────────────────────────

    def reserve(self, count: int) -> None:
        """Raises ApiError if too many bodies are being read already."""
        if self._reading + count > self._limits.bodies_bytes:
            problem = Problem("queue_full", "too many bodies at once", None, "Try again.")
            raise ApiError(429, problem, retry_after=2)
        self._reading += count

    def free(self, count: int) -> None:
        self._reading -= count

    def longest(self, path: str, headers: MutableMapping[str, str]) -> int:
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "multipart/form-data" or kind.startswith("image/"):
            return self._limits.body_bytes
        in_json = dialect_of(path).pictures_in_json
        return self._limits.picture_json_bytes if in_json else self._limits.json_bytes

    @property
    def body_seconds(self) -> float:
        return self._limits.body_seconds


class _Body:
    """Counts a body while it is read, whether its length was announced or not."""

    def __init__(self, guard: Guard, scope: Scope, receive: Receive) -> None:
        self._guard, self._receive = guard, receive
        self._headers = _headers(scope)
        self._limit = guard.longest(scope["path"], self._headers)
        self._end = time.monotonic() + guard.body_seconds
        self._complete = False
        self.count = 0

    async def receive(self) -> MutableMapping[str, Any]:
        if self._complete:
            return await self._receive()
        message = await self._next()
        self._complete = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    async def _next(self) -> MutableMapping[str, Any]:
        announced = self._headers.get("content-length", "0")
        if not announced.isdecimal() or len(announced) > 15 or int(announced) > self._limit:
            raise too_large("the body", self._limit)
        try:
            async with asyncio.timeout(max(0.01, self._end - time.monotonic())):
                message = await self._receive()
        except TimeoutError:
            problem = Problem("too_slow", "the body took too long", None, "Send it again.")
            raise ApiError(408, problem) from None
        size = len(message.get("body", b""))
        if self.count + size > self._limit:
            raise too_large("the body", self._limit)
        self._guard.reserve(size)
        self.count += size
        self._end += size / SLOWEST
        return message

    def done(self) -> None:
        self._guard.free(self.count)


class _Reply:
    """Adds headers to what an app sends; knows whether an error can still be told."""

    def __init__(self, send: Send, scope: Scope) -> None:
        self._send, self._scope = send, scope
        self._began = False
        self.status = 0

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self._began, self.status = True, message["status"]
            headers = [*message.get("headers", ()), *_HEADERS]
            if not any(name.lower() == b"cache-control" for name, _ in headers):
                headers.append((b"cache-control", b"no-store"))
            message = {**message, "headers": headers}
        await self._send(message)

    async def refuse(self, error: ApiError) -> None:
        if self._began and self.status == 500:  # told already
            return
        if self._began:  # too late for a status: the connection is cut
            raise error
        dialect = dialect_of(self._scope["path"])
        content = json.dumps(dialect.body(error)).encode()
        headers = {"content-type": "application/json", **dialect.headers(error)}
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        raw.append((b"content-length", str(len(content)).encode()))
        with suppress(OSError):
            await self.send({"type": "http.response.start", "status": error.status, "headers": raw})
            await self.send({"type": "http.response.body", "body": content})


def _headers(scope: Scope) -> MutableMapping[str, str]:
    return {name.decode("latin-1").lower(): v.decode("latin-1") for name, v in scope["headers"]}


def _same(origin: str, host: str) -> bool:
    """Does a page of this origin talk to its own server? "null" is nobody's."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    default = {"http": ":80", "https": ":443"}.get(parts.scheme)
    if default is None:
        return False
    return parts.netloc.lower().removesuffix(default) == host.lower().removesuffix(default)
