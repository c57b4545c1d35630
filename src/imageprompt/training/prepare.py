"""Encodes a data set once: VAE moments, text states and image features, kept in a cache folder.

Resumable after a kill at any moment, and safe from several processes at once: every entry has an
address that follows from what it is made from, and is written under the lock of its part.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from filelock import Timeout
from torch import Tensor

from imageprompt.errors import OptionError
from imageprompt.files import check_folder
from imageprompt.training.cached import PreparedSet, set_path, store_folder
from imageprompt.training.features import Encoders
from imageprompt.training.ordering import fingerprint_of
from imageprompt.training.pictures import Framing, PictureOptions
from imageprompt.training.planning import Entries, Plan
from imageprompt.training.quarantine import Quarantine
from imageprompt.training.sources import Records
from imageprompt.training.store import CacheError, Store, check_room, partitions
from imageprompt.training.survey import survey

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")
SHARD_BYTES = 2**26
SHARD_ENTRIES = 1024

Origins = Sequence[tuple[bytes, int]]
"""Addresses of entries, and where each comes from."""

Made = Iterator[tuple[bytes, dict[str, Tensor]]]
Told = Callable[[str, int, int], None]
"""Hears what is being done, how much of it is done, and how much there is."""


@dataclass
class Prepared:
    """What was prepared. `encoded` and `kept`: entries by kind, made now and there before."""

    path: Path
    samples: int
    encoded: dict[str, int] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    cut_captions: int = 0
    """Captions longer than the text encoder reads."""
    enlarged: int = 0
    """Pictures smaller than they are shown."""
    seconds: float = 0.0


def prepare(
    records: Records,
    encoders: Encoders,
    options: PictureOptions,
    folder: Path,
    *,
    max_broken: float = 0.02,
    online: bool = False,
    verify: bool = False,
    batch_size: int = 8,
    announce: Callable[[str], None] = lambda line: None,
    told: Told = lambda what, done, total: None,
) -> Prepared:
    """Fill the cache in `folder` with all that these records need and is not there yet.

    `online` leaves image features out; `verify` reads what is there and replaces what is damaged.
    `announce` hears the disk it will take before anything is encoded. Raises OptionError (no room,
    no fixed views), PictureError (too many broken), CacheError (disk full, picture replaced).
    """
    started = time.monotonic()
    if options.fixed_views == 0:
        raise OptionError(
            "views: 0",
            rule="endlessly many random crops cannot be cached",
            remedy="Set views to 4, say, or train without `cache`.",
        )
    check_folder(folder).mkdir(parents=True, exist_ok=True)
    quarantine = Quarantine(len(records), max_broken, records.troubles())
    looked = 0

    def count(number: int) -> None:
        nonlocal looked
        looked += number
        told("look", looked, len(records))

    found = survey(
        records,
        folder / "survey",
        faces=encoders.reads_faces,
        quarantine=quarantine,
        told=count,
    )
    plan = Plan(found, encoders, options, online)
    path = set_path(folder, records, encoders, options, online)
    result = Prepared(path, plan.samples, broken=quarantine.lines(), enlarged=plan.enlarged)
    stores = {
        kind: Store(store_folder(folder, kind, encoders.recipes[kind])) for kind in plan.entries
    }
    result.damaged = [line for store in stores.values() for line in _discard(store, verify)]
    room = {}
    for kind, entries in plan.entries.items():
        missing = int((~stores[kind].has(entries.addresses)).sum())
        result.kept[kind] = len(entries.addresses) - missing
        room[kind] = missing * entries.largest
        if missing:
            announce(f"{missing:,} {kind} to encode: {room[kind] / 1e9:.2f} GB in {str(folder)!r}")
    check_room(folder, sum(room.values()))
    work = _Encoding(records, encoders, plan, batch_size)
    for kind, entries in plan.entries.items():
        result.encoded[kind] = _fill(kind, entries, stores[kind], work, told)
    tokens = plan.tokens(stores["text"])
    result.cut_captions = int((tokens > encoders.most_tokens).sum())
    prepared = plan.prepared_set(tokens, result.broken, fingerprint_of(records, encoders, options))
    if not path.is_file() or not PreparedSet.load(path).same(prepared):
        prepared.save(path)
    result.seconds = time.monotonic() - started
    return result


def _discard(store: Store, verify: bool) -> list[str]:
    """Remove damaged shards; a line for each. All are read if `verify`, else only their headers."""
    lines = []
    damaged = store.check() if verify else store.damaged
    for shard, why in list(damaged.items()):
        with store.writing(shard.partition("-")[0]):
            store.drop(shard)
        lines.append(f"{store.folder / shard}: {why}")
    return lines


def _fill(kind: str, entries: Entries, store: Store, work: _Encoding, told: Told) -> int:
    """Encode what is missing, partition by partition; returns how many entries were made here."""
    size = max(1, min(SHARD_BYTES // max(entries.largest, 1), SHARD_ENTRIES))
    parts = partitions(entries.addresses)
    total, made = len(entries.addresses), 0
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
                        told(kind, made, total)
                    done.add(name)
            except Timeout:
                continue
    store.refresh()
    return made


class _Encoding:
    """Encodes entries from the samples that they come from."""

    def __init__(self, records: Records, encoders: Encoders, plan: Plan, batch_size: int) -> None:
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
                rule="it was replaced while the cache was being prepared",
                remedy="Run `imageprompt prepare` again.",
            )
        return framing.apply(picture)


def _batches(rows: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))
