"""Encodes a data set once: VAE moments, text states and image features, kept in a cache folder.

Resumable after a kill at any moment, and safe from several processes at once: every entry has an
address that follows from what it is made from, and is written under the lock of its part.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from imageprompt.core.atomic_files import check_folder
from imageprompt.core.errors import OptionError
from imageprompt.training.cache.cached_dataset import PreparedSet, set_path, store_folder
from imageprompt.training.cache.encode_missing import Encoding, OnProgress, fill
from imageprompt.training.cache.encoders import FeatureExtractors
from imageprompt.training.cache.plan import Plan
from imageprompt.training.cache.store import Store, check_room
from imageprompt.training.data.bucket_sampler import fingerprint_of
from imageprompt.training.data.framing import PictureOptions
from imageprompt.training.data.scan import Quarantine, ScanResult, scan
from imageprompt.training.data.sources import Records

NAMES = {"moments": "pictures", "text": "captions", "features": "image features"}

Log = Callable[[str], None]
"""Hears a line for whoever watches."""


@dataclass
class Prepared:
    """What was prepared. `encoded` and `kept`: entries by kind, made here and there before."""

    path: Path
    samples: int
    set: PreparedSet | None = None
    """None after a dry run."""
    encoded: dict[str, int] = field(default_factory=dict)
    room: dict[str, int] = field(default_factory=dict)
    """Bytes that was not there before, by kind."""
    kept: dict[str, int] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    cut_captions: int = 0
    """Captions longer than the text encoder reads."""
    enlarged: int = 0
    """Pictures smaller than they are shown."""
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """All but the set itself, as plain values."""
        plain = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "set"}
        return plain | {"path": str(self.path)}


def prepare(
    records: Records,
    encoders: FeatureExtractors,
    options: PictureOptions,
    folder: Path,
    *,
    max_broken: float = 0.02,
    online: bool = False,
    verify: bool = False,
    dry_run: bool = False,
    batch_size: int = 8,
    log: Log = lambda line: None,
    on_progress: OnProgress = lambda what, done, total: None,
) -> Prepared:
    """Fill the cache in `folder` with all that these records need and is not there yet.

    `online` leaves image features out; `verify` reads what is there and replaces what is damaged;
    `dry_run` ends before anything is encoded. `log` hears the disk it will take, and later how
    many captions are cut and pictures enlarged; `on_progress` hears of the progress. Raises OptionError
    (no room, no fixed views), PictureError (too many broken), CacheError (disk full, picture
    replaced).
    """
    started = time.monotonic()
    if options.fixed_views == 0:
        raise OptionError(
            "views: 0",
            reason="endlessly many random crops cannot be cached",
            hint="Set views to 4, log, or train without `cache`.",
        )
    check_folder(folder).mkdir(parents=True, exist_ok=True)
    quarantine = Quarantine(len(records), max_broken, records.troubles())
    found = _look(records, folder, encoders.reads_faces, quarantine, on_progress)
    plan = Plan(found, encoders, options, online)
    path = set_path(folder, records, encoders, options, online)
    result = Prepared(path, plan.samples, broken=quarantine.lines(), enlarged=plan.enlarged)
    stores = {
        kind: Store(store_folder(folder, kind, encoders.recipes[kind])) for kind in plan.entries
    }
    result.damaged = [line for store in stores.values() for line in _discard(store, verify)]
    for kind, entries in plan.entries.items():
        missing = int((~stores[kind].has(entries.addresses)).sum())
        result.kept[kind] = len(entries.addresses) - missing
        result.room[kind] = missing * entries.largest
    _log_room(result, plan, folder, log)
    if dry_run:
        return result
    work = Encoding(records, encoders, plan, batch_size)
    for kind, entries in plan.entries.items():
        result.encoded[kind] = fill(kind, entries, stores[kind], work, on_progress)
    tokens = plan.tokens(stores["text"])
    result.cut_captions = int((tokens > encoders.most_tokens).sum())
    _log_odd(result, encoders.most_tokens, log)
    result.set = plan.prepared_set(
        tokens, result.broken, fingerprint_of(records, encoders, options)
    )
    known = PreparedSet.find(path)
    if known is None or not known.same(result.set):
        result.set.save(path)
    result.seconds = time.monotonic() - started
    return result


def _look(
    records: Records, folder: Path, faces: bool, quarantine: Quarantine, on_progress: OnProgress
) -> ScanResult:
    """Look at all samples, and tell how many are done."""
    looked = 0

    def count(number: int) -> None:
        nonlocal looked
        looked += number
        on_progress("look", looked, len(records))

    return scan(records, folder / "survey", faces=faces, quarantine=quarantine, on_progress=count)


def _log_room(result: Prepared, plan: Plan, folder: Path, log: Log) -> None:
    """Say what disk it takes, before it is taken. Raises OptionError if it is not there."""
    for kind, room in result.room.items():
        missing = len(plan.entries[kind].addresses) - result.kept[kind]
        if missing:
            log(f"{missing:,} {NAMES[kind]} to encode: {_in_words(room)}")
    room, features = sum(result.room.values()), result.room.get("features", 0)
    if room:
        log(f"together {_in_words(room)} in {str(folder)!r}")
    if features > max(room / 2, 10**9):
        log(f"online: true would leave {_in_words(features)} of image features out")
    check_room(folder, room)


def _log_odd(result: Prepared, most: int, log: Log) -> None:
    """Say what is not shown or read as it is."""
    if result.enlarged:
        log(f"{result.enlarged:,} pictures are smaller than they are shown, and enlarged")
    if result.cut_captions:
        log(f"{result.cut_captions:,} captions are longer than {most} tokens, and cut")


def _in_words(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 10**8 else f"{size / 1e6:.2f} MB"


def _discard(store: Store, verify: bool) -> list[str]:
    """Remove damaged shards; a line for each. All are read if `verify`, else only their headers."""
    if verify:
        store.check()
    lines = []
    for shard, why in list(store.damaged.items()):
        with store.writing(shard.partition("-")[0]):
            if store.drop(shard, deep=verify):
                lines.append(f"{store.folder / shard}: {why}")
    return lines
