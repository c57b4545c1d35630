"""Who may train in a folder, and how a run is stopped: the run lock, SIGTERM and Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from imageprompt.core.atomic_files import locked

LOCK = ".lock"


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Lock the folder inside the block, one run a folder; a killed run leaves it unlocked.

    Raises OptionError if another run holds the lock.
    """
    with locked(
        folder / LOCK,
        f"output folder {str(folder)!r}",
        timeout=0,
        reason="another run is training there",
        hint="Wait for it, stop it, or choose another output.",
    ):
        yield


class StopRequest:
    """Inside the block, SIGTERM and Ctrl-C set `signal`, and the run ends after its step.

    A second Ctrl-C ends it at once. Outside the main thread Python receives no signals, and
    nothing changes.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
