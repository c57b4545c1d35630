"""The queue: bounded, fair between keys, in batches of what can be denoised together."""

from __future__ import annotations

import json
import math
from collections import OrderedDict, deque
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imageprompt.serve.settings import Limits
from imageprompt.serve.sources import START_PICTURES

GUESSED_RATE = 512.0**2 * 20 / 10
"""Pixels × steps a second, until it is known."""
QUANTUM = 512.0**2 * 20
"""Pixels × steps that a key may spend in each round; larger jobs save up for several."""


@dataclass(frozen=True)
class Entry:
    """A job in the queue. Those with one `batch_key` can share a denoiser batch."""

    id: str
    owner: str
    cost: float
    """Pixels × steps."""
    pictures: int
    pixels: int
    """Of one picture."""
    batch_key: Hashable


class Full(Exception):
    """No room; `quota` tells whether it is that of this owner alone."""

    def __init__(self, *, quota: bool) -> None:
        super().__init__()
        self.quota = quota


class _Rounds:
    """The jobs of each owner, and what each may spend before its next turn."""

    def __init__(self) -> None:
        self.waiting: OrderedDict[str, deque[Entry]] = OrderedDict()
        self.saved: dict[str, float] = {}

    def copy(self) -> _Rounds:
        other = _Rounds()
        other.waiting = OrderedDict((owner, deque(jobs)) for owner, jobs in self.waiting.items())
        other.saved = dict(self.saved)
        return other

    def add(self, entry: Entry) -> None:
        self.waiting.setdefault(entry.owner, deque()).append(entry)
        self.saved.setdefault(entry.owner, 0.0)

    def remove(self, entry: Entry) -> None:
        self.waiting[entry.owner].remove(entry)
        if not self.waiting[entry.owner]:
            del self.waiting[entry.owner], self.saved[entry.owner]

    def spend(self, entry: Entry) -> None:
        self.saved[entry.owner] -= entry.cost

    def next(self) -> Entry | None:
        """The job whose turn it is. It stays where it is, and is not paid."""
        while self.waiting:
            owner, jobs = next(iter(self.waiting.items()))
            if self.saved[owner] < jobs[0].cost:
                self.saved[owner] += self._grant()
                self.waiting.move_to_end(owner)
            if self.saved[owner] >= jobs[0].cost:
                return jobs[0]
        return None

    def _grant(self) -> float:
        """One quantum; rounds in which nobody could take anything are made one."""
        lacking = (jobs[0].cost - self.saved[owner] for owner, jobs in self.waiting.items())
        return QUANTUM * max(1, math.ceil(min(lacking) / QUANTUM))


class FairQueue:
    """Deficit round robin: in each round every owner with jobs gets the same amount of work.

    So an owner with a thousand jobs delays another one's first job by one job, not by a thousand.
    """

    def __init__(self, limits: Limits, most: int) -> None:
        self._limits, self._most = limits, most
        self._again: deque[Entry] = deque()
        self._rounds = _Rounds()
        self._entries: dict[str, Entry] = {}
        self.cost = 0.0
        """Pixels × steps of all that wait."""
        self.reserved = 0
        """Jobs that are about to be pushed."""
        self._rate: float | None = None
        self._positions: dict[str, int] | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, job: object) -> bool:
        return job in self._entries

    @property
    def full(self) -> bool:
        return len(self) + self.reserved >= self._most

    def check(self, owner: str, cost: float) -> None:
        """Raises Full."""
        if len(self._rounds.waiting.get(owner, ())) >= self._limits.queued_jobs_of_one_key:
            raise Full(quota=True)
        if self.full or (self.cost and self.cost + cost > self._limits.queued_work):
            raise Full(quota=False)

    def push(self, entry: Entry) -> None:
        self._add(entry)
        self._rounds.add(entry)

    def push_again(self, entry: Entry) -> None:
        """A job that had begun already goes first."""
        self._add(entry)
        self._again.append(entry)

    def remove(self, job: str) -> bool:
        """Was it in the queue?"""
        entry = self._entries.get(job)
        if entry is None:
            return False
        self._drop(entry)
        return True

    def take(self, most: int) -> list[Entry]:
        """The next job, and those that can run with it: at most `most` pictures in all."""
        first = self._again[0] if self._again else self._rounds.next()
        if first is None:
            return []
        batch, pictures = [first], first.pictures
        others = [] if first.batch_key is None else self.order()
        for entry in others:
            together = pictures + entry.pictures
            fits = together * first.pixels <= self._limits.running_batch_pixels
            same = entry.batch_key == first.batch_key and entry is not first
            if same and together <= most and fits:
                batch.append(entry)
                pictures = together
        for entry in batch:
            if entry not in self._again:
                self._rounds.spend(entry)
            self._drop(entry)
        return batch

    def order(self) -> list[Entry]:
        """The jobs in the order in which they will be taken."""
        found, rounds = list(self._again), self._rounds.copy()
        while (entry := rounds.next()) is not None:
            found.append(entry)
            rounds.spend(entry)
            rounds.remove(entry)
        return found

    def positions(self) -> dict[str, int]:
        """Job -> number of jobs before it."""
        if self._positions is None:
            self._positions = {entry.id: number for number, entry in enumerate(self.order())}
        return self._positions

    def learn(self, cost: float, seconds: float) -> None:
        """A batch of this cost took so long."""
        if cost > 0 and seconds > 0:
            now = cost / seconds
            self._rate = now if self._rate is None else 0.8 * self._rate + 0.2 * now

    def seconds(self) -> float:
        """How long the jobs that wait will take, by how fast the last ones were."""
        return self.cost / (self._rate or GUESSED_RATE)

    def _add(self, entry: Entry) -> None:
        self._entries[entry.id] = entry
        self._positions = None
        self.cost += entry.cost

    def _drop(self, entry: Entry) -> None:
        del self._entries[entry.id]
        self._positions = None
        self.cost = self.cost - entry.cost if self._entries else 0.0
        if entry in self._again:
            self._again.remove(entry)
        else:
            self._rounds.remove(entry)


def batch_key(request: Mapping[str, Any]) -> Hashable:
    """What two requests must agree in to share a batch; None for one that runs alone.

    The engine groups by the same rule, more exactly. This one only avoids that jobs wait for
    others that they gain nothing from.
    """
    if any(request.get(name) is not None for name in START_PICTURES):
        return None
    sampling = ("guidance_scale", "guidance_until", "true_cfg_scale", "guidance", "eta")
    same = ("size", "steps", *sampling)
    shared = [request.get(name) for name in same]
    shared.append(not request.get("negative_prompt"))
    references = [_of_reference(one) for one in request.get("references") or ()]
    return json.dumps([shared, references], sort_keys=True)


_PER_ROW = ("reference", "image_prompt", "weights", "reference_mask", "negative_reference", "mask")


def _of_reference(reference: Mapping[str, Any]) -> Any:
    masked = [reference.get("mask") is not None, len(_listed(reference.get("reference")))]
    style = reference.get("style")
    rest = {name: v for name, v in reference.items() if name not in (*_PER_ROW, "style")}
    return [rest, masked, style is not None]


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else [value]
