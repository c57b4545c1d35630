"""The worker process: `python -m imageprompt.serve.worker.process`, started by the supervisor.

It reads messages from stdin and writes messages to what stdout was; what libraries print goes to
stderr. It ends at once when stdin does, because the server has ended then.
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Mapping
from typing import Any, BinaryIO

from imageprompt.core.console import note
from imageprompt.core.errors import ImagePromptError
from imageprompt.core.schema import validate
from imageprompt.serve.errors import ApiError, Problem, problem_of
from imageprompt.serve.settings import Settings
from imageprompt.serve.worker.protocol import Message, ProtocolError, read

HEART_BEAT = 1.0
"""Seconds between two signs of life."""


class Channel:
    """Messages to the server, from several threads."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._lock = stream, threading.Lock()

    def tell(self, message: Message) -> None:
        try:
            with self._lock:
                self._stream.write(message.as_bytes())
                self._stream.flush()
        except OSError:  # the server has ended
            os._exit(1)


def main() -> int:
    """Serve until stdin ends."""
    channel = Channel(os.fdopen(os.dup(1), "wb"))
    os.dup2(2, 1)
    warnings.showwarning = _log_warning
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    stdin = sys.stdin.buffer
    first = read(stdin)
    if first is None or first.kind != "start":
        return 2
    threading.Thread(target=_beat, args=(channel,), daemon=True).start()
    try:
        worker = Worker(first.data, channel)
    except ImagePromptError as error:
        channel.tell(Message("refused", {"error": str(error)}))
        return 2
    except Exception as error:
        note("".join(traceback.format_exception(error)).strip())
        channel.tell(Message("refused", {"error": f"unexpected {type(error).__name__}: {error}"}))
        return 2
    threading.Thread(target=worker.listen, args=(stdin,), daemon=True).start()
    channel.tell(Message("ready", worker.models.described()))
    worker.work()
    return 0


class Worker:
    """Takes one message after another; cancellations are heard meanwhile."""

    def __init__(self, start: Mapping[str, Any], channel: Channel) -> None:
        from imageprompt.serve.worker.pictures import PictureMaker
        from imageprompt.serve.worker.served_models import ServedModels
        from imageprompt.serve.worker.tasks import Tasks

        settings = validate(Settings, start["settings"], what="settings")
        self._tell = channel.tell
        self._messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.models = ServedModels(settings)
        self._maker = PictureMaker(self.models, settings.batch_size, channel.tell, settings.limits)
        self._tasks = Tasks(self.models, settings.base, settings.faces)

    def listen(self, stream: BinaryIO) -> None:
        """The thread that reads; ends the process with the stream."""
        signals = self._maker.signals
        try:
            while (message := read(stream)) is not None:
                if message.kind == "cancel":
                    signals.cancelled.add(message.data["job"])
                elif message.kind == "watch":
                    signals.watched.add(message.data["job"])
                elif message.kind == "unwatch":
                    signals.watched.discard(message.data["job"])
                else:
                    self._messages.put(message)
        except ProtocolError:
            pass
        os._exit(0)

    def work(self) -> None:
        while True:
            message = self._messages.get()
            if message.kind == "run":
                self._maker.run(message.data["jobs"])
                self._tell(Message("idle"))
            elif message.kind == "task":
                self._tell(Message("answer", self._answer(message.data)))

    def _answer(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        try:
            result = self._tasks.run(asked["name"], asked["arguments"])
            return {"id": asked["id"], "result": result}
        except ApiError as error:
            problem = error.problem
        except ImagePromptError as error:
            problem = problem_of(error)
        except Exception as error:
            note("".join(traceback.format_exception(error)).strip())
            problem = Problem("internal", "an error of the server")
        return {"id": asked["id"], "error": problem.as_dict()}


def _beat(channel: Channel) -> None:
    while True:
        time.sleep(HEART_BEAT)
        channel.tell(Message("beat"))


def _log_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Warnings may quote what a client sent: only where they come from is logged."""
    logging.getLogger("imageprompt.serve").info("a warning of type %s", type(message).__name__)


if __name__ == "__main__":
    sys.exit(main())
