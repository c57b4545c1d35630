"""Encodes the entries that a cache lacks, a shard at a time, each by one process only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import TYPE_CHECKING, TypeVar

import torch
from filelock import Timeout
from torch import Tensor

from imageprompt.training.cache.encoders import FeatureExtractors
from imageprompt.training.cache.plan import Entries, Plan
from imageprompt.training.cache.store import CacheError, Store, partitions
from imageprompt.training.data.framing import Framing
from imageprompt.training.data.sources import Records

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")
SHARD_BYTES = 2**26
SHARD_ENTRIES = 1024

Origins = Sequence[tuple[bytes, int]]
"""Addresses of entries, and where each comes from."""

Made = Iterator[tuple[bytes, dict[str, Tensor]]]
OnProgress = Callable[[str, int, int], None]
"""Hears what is being done, how much of it is done, and how much there is."""


def fill(kind: str, entries: Entries, store: Store, work: Encoding, on_progress: OnProgress) -> int:
    """Encode what is missing, partition by partition; returns how many entries were made here."""
    size = max(1, min(SHARD_BYTES // max(entries.largest, 1), SHARD_ENTRIES))
    parts = partitions(entries.addresses)
    total, made = len(entries.addresses), 0
    kept = int(store.has(entries.addresses).sum())
    done: set[str] = set()
    for wait in (False, True):  # first what nobody else is at, then whatever is left
        for name, addresses in parts.items():
            if name in done:
                continue
            try:
                with store.writing(name, wait=wait):
                    missing = addresses[~store.has(addresses)]
                    for start in range(0, len(missing), size):
                        chunk = [bytes(one) for one in missing[start : start + size]]
                        store.write(name, work.encode(kind, entries.origins_of(chunk)))
                        made += len(chunk)
                        on_progress(kind, kept + made, total)
                    done.add(name)
            except Timeout:
                continue
    store.refresh()
    return made


class Encoding:
    """Encodes entries from the samples that they come from."""

    def __init__(
        self, records: Records, encoders: FeatureExtractors, plan: Plan, batch_size: int
    ) -> None:
        self._records, self._encoders, self._plan = records, encoders, plan
        self._batch = batch_size
        self._pool = ThreadPoolExecutor(min(8, batch_size))

    def encode(self, kind: str, origins: Origins) -> dict[bytes, dict[str, Tensor]]:
        """Address and origin of each entry -> its tensors."""
        encode = {"moments": self._moments, "text": self._text, "features": self._image}[kind]
        return dict(encode(origins))

    def _moments(self, origins: Origins) -> Made:
        framed = [(*self._plan.framing(origin), address) for address, origin in origins]
        framed.sort(key=lambda one: one[1].crop)  # stable: one size a batch
        for _, alike in groupby(framed, key=lambda one: one[1].crop):
            for rows in _batches(list(alike), self._batch):
                shown = list(self._pool.map(lambda row: self._shown(row[0], row[1]), rows))
                for row, one in zip(rows, self._encoders.moments(shown), strict=True):
                    yield row[2], {"moments": one.clone()}

    def _text(self, origins: Origins) -> Made:
        for rows in _batches(origins, self._batch):
            captions = [self._records.record(origin).text for _, origin in rows]
            states, added = self._encoders.text(captions)
            counts = self._encoders.token_counts(captions)
            for row, (address, _) in enumerate(rows):
                parts = {"states": states[row].clone(), "tokens": torch.tensor(counts[row])}
                yield address, parts | {name: value[row].clone() for name, value in added.items()}

    def _image(self, origins: Origins) -> Made:
        for rows in _batches(origins, self._batch):
            pictures = self._pool.map(
                lambda row: self._records.record(row[1]).open_reference(), rows
            )
            for (address, _), one in zip(rows, self._encoders.image(list(pictures)), strict=True):
                yield address, {"encoded": one.clone()}

    def _shown(self, index: int, framing: Framing) -> Image:
        record = self._records.record(index)
        picture = record.open_picture()
        if picture.size != framing.original:
            raise CacheError(
                f"picture {record.key!r}",
                reason="it was replaced while the cache was being prepared",
                hint="Run `imageprompt prepare` again.",
            )
        return framing.apply(picture)


def _batches(rows: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))
