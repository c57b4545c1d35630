"""What happened to a job, for readers who may be slow, late or come again."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

LAST = ("done", "failed", "cancelled")
"""Kinds of events after which there are no more."""
_LATEST_ONLY = ("queued", "progress", "preview")
"""Of these a reader needs the newest alone."""


@dataclass(frozen=True)
class Event:
    number: int
    kind: str
    data: Mapping[str, Any]

    def as_sse(self, epoch: str) -> bytes:
        """As in a stream of Server-Sent Events; its data is one line of ASCII."""
        text = f"id: {epoch}-{self.number}\nevent: {self.kind}\ndata: {json.dumps(self.data)}\n\n"
        return text.encode()


class EventLog:
    """The events of one job. It stays small: newer progress and previews replace older ones."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._events: dict[Any, Event] = {}
        self._changed = asyncio.Event()
        self.ended = False
        self.readers = 0

    def add(self, kind: str, **data: Any) -> None:
        event = Event(next(self._numbers), kind, data)
        slot: Any = event.number
        if kind in _LATEST_ONLY:
            slot = (kind, data.get("index"))
            self._events.pop(slot, None)
        if kind == "started":  # what was told of the place and of an earlier attempt is over
            self._forget("queued", "progress", "preview")
        self._events[slot] = event
        if kind in LAST:
            self._forget("preview")
            self.ended = True
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def after(self, number: int) -> Iterator[Event]:
        """The events after one, in order."""
        return iter([event for event in self._events.values() if event.number > number])

    async def wait(self, seconds: float | None = None) -> bool:
        """Until something happens; False if nothing does for so many seconds."""
        try:
            async with asyncio.timeout(seconds):  # wait_for of Python 3.11 can lose a cancellation
                await self._changed.wait()
        except TimeoutError:
            return False
        return True

    def wake(self) -> None:
        """Let the readers look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    def _forget(self, *kinds: str) -> None:
        self._events = {
            slot: event for slot, event in self._events.items() if event.kind not in kinds
        }


def number_after(last_id: str, epoch: str) -> int:
    """The number in a reader's Last-Event-ID; 0, from the start, for one of an earlier server."""
    known, _, number = last_id.partition("-")
    return int(number) if known == epoch and number.isdecimal() and len(number) < 10 else 0
