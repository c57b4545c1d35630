"""The server's side of the worker: starts it, listens to it, starts it again when it has died."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from imageprompt.core.errors import ImagePromptError, OptionError
from imageprompt.serve.errors import ApiError, Problem
from imageprompt.serve.settings import Settings
from imageprompt.serve.worker import protocol
from imageprompt.serve.worker.protocol import Message

SILENT_SECONDS = 120.0
"""After so long without a sign of life the worker is killed."""
LONGEST_PAUSE = 30.0
"""Seconds before another start of a worker that keeps dying."""
COMMAND = (sys.executable, "-P", "-m", "imageprompt.serve.worker.process")

log = logging.getLogger(__name__)


class Supervisor:
    """One worker process at a time. `heard` gets its messages, `died` is told of its end."""

    def __init__(
        self,
        settings: Settings,
        heard: Callable[[Message], None],
        died: Callable[[], None],
    ) -> None:
        self._settings, self._heard, self._died = settings, heard, died
        self._process: asyncio.subprocess.Process | None = None
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._numbers = itertools.count()
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self._last = 0.0
        self.first_start: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.described: dict[str, Any] = {}
        """What the worker said of base and adapters; empty until it was ready once."""
        self.ready = False
        self.starts = 0

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the worker, and keep one running. `first_start` ends when it is ready, or has an
        OptionError with its words if it cannot start at all."""
        self._task = asyncio.create_task(self._keep_running())

    async def stop(self) -> None:
        """End the worker, at the latest after a few seconds."""
        self._stopping = True
        process = self._process
        if process is not None and process.returncode is None:
            if process.stdin is not None:
                process.stdin.close()
            try:
                await asyncio.wait_for(process.wait(), timeout=3)
            except TimeoutError:
                self.kill()
        if self._task is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def kill(self) -> None:
        """End the worker now, and with it what it does."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    def send(self, message: Message) -> None:
        """Send a message, if there is a worker: what it does not get dies with it."""
        process = self._process
        if process is not None and process.stdin is not None and not process.stdin.is_closing():
            process.stdin.write(message.as_bytes())

    async def task(self, name: str, arguments: Mapping[str, Any], timeout: float) -> Any:
        """The answer to a task. Raises ApiError."""
        if not self.ready:
            raise ApiError(
                503,
                Problem("not_ready", "the worker is starting", None, "Try again."),
                retry_after=5,
            )
        number = next(self._numbers)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        try:
            self.send(Message("task", {"id": number, "name": name, "arguments": arguments}))
            async with asyncio.timeout(timeout):
                return await answer
        except TimeoutError:
            raise ApiError(
                504, Problem("timeout", f"no answer within {timeout:g} s", None, "Try again.")
            ) from None
        finally:
            self._answers.pop(number, None)

    # ── the process ─────────────────────────────────────────────────────────────────────────────

    async def _keep_running(self) -> None:
        failures = 0
        while True:
            began = time.monotonic()
            await self._one_life()
            self.ready = False
            self._refuse_answers()
            if self._over():
                return
            self._died()
            failures = 0 if time.monotonic() - began > 60 else failures + 1
            await asyncio.sleep(min(LONGEST_PAUSE, 0.2 * 2**failures - 0.2))

    def _over(self) -> bool:
        """Is there to be no other worker? One that has never been ready is not started again."""
        if self._stopping:
            return True
        if not self.first_start.done():
            error = OptionError("the worker", reason="ended before it was ready")
            self.first_start.set_exception(error)
        return self.first_start.exception() is not None

    async def _one_life(self) -> None:
        self.starts += 1
        process = await asyncio.create_subprocess_exec(
            *COMMAND,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=protocol.MAX_LINE,
            start_new_session=True,  # a Ctrl-C in the terminal is the server's to hear
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        self._process, self._last = process, time.monotonic()
        watch = asyncio.create_task(self._watch(process))
        try:
            self.send(Message("start", {"settings": asdict(self._settings)}))
            await self._listen(process)
        except protocol.ProtocolError as error:
            log.error("the worker sent what is no message: %s", error)
            process.kill()
        finally:
            watch.cancel()
            if process.stdin is not None:
                process.stdin.close()
            code = await process.wait()
            if not self._stopping:
                log.error("the worker ended with code %s", code)

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while (message := await protocol.receive(process.stdout)) is not None:
            self._last = time.monotonic()
            if message.kind == "ready":
                self.described, self.ready = dict(message.data), True
                if not self.first_start.done():
                    self.first_start.set_result(None)
            elif message.kind == "refused" and not self.first_start.done():
                self.first_start.set_exception(ImagePromptError(message.data["error"]))
            elif message.kind == "answer":
                self._answer(message.data)
            if message.kind not in ("answer", "beat"):
                self._heard(message)

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        while True:
            await asyncio.sleep(2)
            if time.monotonic() - self._last > SILENT_SECONDS:
                log.error("the worker has been silent for %g s and is ended", SILENT_SECONDS)
                process.kill()

    def _answer(self, data: Mapping[str, Any]) -> None:
        future = self._answers.get(data["id"])
        if future is None or future.done():
            return
        if "error" in data:
            problem = Problem.from_dict(data["error"])
            status = {"internal": 500, "not_found": 404, "storage": 503}.get(problem.type, 400)
            future.set_exception(ApiError(status, problem))
        else:
            future.set_result(data["result"])

    def _refuse_answers(self) -> None:
        for future in self._answers.values():
            if not future.done():
                problem = Problem("not_ready", "the worker has ended", None, "Try again.")
                future.set_exception(ApiError(503, problem, retry_after=5))
