"""Several servers on a Ray cluster behind one address: an application of Ray Serve.

    serve run imageprompt.serve.ray_app:app replicas=2 keys=/shared/keys.json data=/shared/served

The arguments are those of `imageprompt serve`, without host and port, which are Ray's. Server N
keeps its jobs in `data`/replica-N: when it is started again, also on another machine, it goes on
with them. What the servers do is what `imageprompt serve` does; `replicas` says who answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict, replace
from typing import Any

from fastapi import FastAPI
from ray import exceptions, serve
from ray.serve.config import BackpressureConfig
from ray.serve.exceptions import RayServeException

from imageprompt.core.errors import OptionError
from imageprompt.core.schema import options, validate
from imageprompt.serve.app import add_page, make_app
from imageprompt.serve.guard import Guard, Receive, Scope, Send
from imageprompt.serve.metrics import Metrics
from imageprompt.serve.replicas import MOST, Lost, Message, Replica, Router, answers_of, mark_of
from imageprompt.serve.service import Service
from imageprompt.serve.settings import Settings

UNREADY_SECONDS = 600.0
"""A server whose worker has been away for so long is ended, and another one started."""
ANSWER_SECONDS = 5.0
"""How long the router waits for a server to say how many jobs wait there."""
LOOK_SECONDS = 2.0
WAITING_REQUESTS = 1000
"""In the router and on their way; more are answered with 429."""
_LISTS = ("adapter", "allow_host")


def app(arguments: Mapping[str, Any]) -> serve.Application:
    """The application; Ray Serve calls this. Raises OptionError."""
    given = dict(arguments)
    try:
        count, gpus = int(given.pop("replicas", 1)), float(given.pop("gpus", 0))
    except ValueError as error:
        raise OptionError("replicas= or gpus=", reason=str(error)) from error
    if not 1 <= count <= MOST:
        raise OptionError(f"replicas={count}", reason=f"not between 1 and {MOST}")
    described = asdict(settings_of(given))
    servers = [
        serve.deployment(ServerReplica)
        .options(
            name=f"server-{number}",
            num_replicas=1,
            max_ongoing_requests=WAITING_REQUESTS,
            ray_actor_options={"num_cpus": 1, "num_gpus": gpus},
            graceful_shutdown_timeout_s=described["drain"] + 10,
        )
        .bind(described, number)
        for number in range(count)
    ]
    router = serve.deployment(serve.ingress()(RouterReplica)).options(
        name="router",
        num_replicas=1,
        max_ongoing_requests=WAITING_REQUESTS,
        max_queued_requests=WAITING_REQUESTS,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=5),
        ray_actor_options={"num_cpus": 0.1},
    )
    return router.bind(described, *servers)


def settings_of(given: Mapping[str, Any]) -> Settings:
    """The settings of all servers. They need keys: Ray's proxies may listen on all addresses."""
    known = {field.name for field in options(Settings)} - {"host", "port"}
    for name in given:
        if name not in known:
            raise OptionError(f"{name}=", reason=f"not one of {', '.join(sorted(known))}")
    if given.get("keys") is None:
        raise OptionError(
            "keys=",
            reason="missing, and everybody who reaches Ray's proxy could use the servers",
            hint="Make a key first: imageprompt serve --keys FILE --add-key NAME.",
        )
    plain = {
        name: [value] if name in _LISTS and isinstance(value, str) else value
        for name, value in given.items()
    }
    settings: Settings = validate(Settings, {**plain, "host": "0.0.0.0"}, what="arguments")
    return settings.check()


class ServerReplica:
    """One server, with a worker process of its own."""

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits it
        self, described: Mapping[str, Any], number: int
    ) -> None:
        settings: Settings = validate(Settings, described, what="")
        folder = settings.data_folder / f"replica-{number}"
        settings = replace(settings, data=str(folder), requests_per_minute=None)  # the router's
        folder.mkdir(parents=True, exist_ok=True)
        self._service = Service(settings, mark_of(number))
        await self._service.start()
        await self._service.first_ready()
        self._app = make_app(self._service)
        self._worked = time.monotonic()

    async def answer(self, scope: Mapping[str, Any], body: bytes) -> AsyncIterator[Message]:
        async for message in answers_of(self._app, scope, body):
            yield message

    async def waiting(self) -> int | None:
        working = self._service.worker.ready and not self._service.admission.draining
        return len(self._service.queue) if working else None

    def check_health(self) -> None:
        """Ray Serve calls this; a supervisor starts its worker again by itself."""
        if self._service.worker.ready:
            self._worked = time.monotonic()
        elif time.monotonic() - self._worked > UNREADY_SECONDS:
            raise RuntimeError("the worker does not come back")

    async def __del__(self) -> None:
        """Ray Serve calls this when it ends a server, and waits for it."""
        self._service.drain()
        end = time.monotonic() + self._service.settings.drain
        while not self._service.idle and time.monotonic() < end:
            await asyncio.sleep(0.05)
        await self._service.stop()


class RouterReplica:
    """The router, behind the guard that every server has, too."""

    def __init__(self, described: Mapping[str, Any], *servers: Any) -> None:
        self._settings: Settings = validate(Settings, described, what="")
        self._servers = servers

    def __serve_build_asgi_app__(self) -> Any:
        replicas = [_Handle(one) for one in self._servers]
        return _Living(Router(replicas, self._settings.limits), self._settings)


class _Living:
    """Starts and ends the router's watch with the process."""

    def __init__(self, router: Router, settings: Settings) -> None:
        self._router = router
        self._guard = Guard(router, settings, Metrics(), add_page(FastAPI()))
        self._watch: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self._guard(scope, receive, send)
            return
        while True:
            kind = (await receive())["type"]
            if kind == "lifespan.startup":
                self._watch = asyncio.create_task(self._router.watch(LOOK_SECONDS))
            elif self._watch is not None:
                self._watch.cancel()
            await send({"type": f"{kind}.complete"})
            if kind == "lifespan.shutdown":
                return


class _Handle(Replica):
    """A server through Ray."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def answer(self, scope: Mapping[str, Any], body: bytes) -> AsyncIterator[Message]:
        response = self._handle.answer.options(stream=True).remote(scope, body)
        try:
            async for message in response:
                yield message
        except (exceptions.RayError, RayServeException) as error:
            raise Lost from error
        finally:
            with contextlib.suppress(Exception):  # it has ended already
                response.cancel()

    async def waiting(self) -> int | None:
        response = self._handle.waiting.remote()
        try:
            jobs: int | None = await asyncio.wait_for(response, ANSWER_SECONDS)
            return jobs
        except (TimeoutError, asyncio.CancelledError, exceptions.RayError, RayServeException):
            return None
