"""The process of `imageprompt serve`: takes the data folder, listens, drains when it is told to."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from imageprompt.core.errors import OptionError
from imageprompt.serve.app import make_app
from imageprompt.serve.service import Service
from imageprompt.serve.settings import Settings

CLOSING_SECONDS = 5
"""What connections get after the drain."""


def serve(settings: Settings, ready: Callable[[str], None], note: Callable[[str], None]) -> None:
    """Serve until a signal ends it; `ready` gets the address once jobs are taken.

    Raises OptionError and what loading raises. `note` gets lines for people.
    """
    settings.check()
    with _listening(settings) as listener:
        asyncio.run(_serve(settings, listener, ready, note))


async def _serve(
    settings: Settings,
    listener: socket.socket,
    ready: Callable[[str], None],
    note: Callable[[str], None],
) -> None:
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    service = Service(settings)
    await service.start()
    config = uvicorn.Config(
        make_app(service),
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        timeout_keep_alive=30,
        timeout_graceful_shutdown=CLOSING_SECONDS,
        h11_max_incomplete_event_size=64 * 1024,
        proxy_headers=False,
    )
    server = DrainingServer(config, service, note)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        starting = asyncio.create_task(service.first_ready())
        await asyncio.wait((serving, starting), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            ready(_address(listener))
        await serving
    finally:
        server.should_exit = True
        starting.cancel()
        await asyncio.gather(serving, starting, return_exceptions=True)
        await service.stop()


class DrainingServer(uvicorn.Server):
    """At the first signal it goes on listening until its work is done; at the second it ends."""

    def __init__(
        self, config: uvicorn.Config, service: Service, note: Callable[[str], None]
    ) -> None:
        super().__init__(config)
        self._service, self._note = service, note
        self._loop = asyncio.get_running_loop()
        self._draining = False
        self._task: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._draining:
            self.should_exit = self.force_exit = True
            return
        self._draining = True
        self._loop.call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        self._note("ending when the jobs that run are done; a second signal ends at once")
        self._service.drain()
        self._task = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        end = self._loop.time() + self._service.settings.drain
        while not self._service.idle and self._loop.time() < end and not self.should_exit:
            await asyncio.sleep(0.05)
        self.should_exit = True


def _listening(settings: Settings) -> socket.socket:
    """A socket that listens. Raises OptionError if the address is taken or not here."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # by the protocol asyncio knows that small packets are to be sent at once
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host.strip("[]"), settings.port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise OptionError(
            f"address {settings.host}:{settings.port}",
            reason=error.strerror or str(error),
            hint="Choose another port: --port N.",
        ) from error
    return listener


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
