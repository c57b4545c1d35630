"""Encodes the entries that a cache lacks, each by one process only; opens every picture once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from imageprompt.core.atomic_files import BusyError
from imageprompt.core.errors import PictureError
from imageprompt.training.cache.plan import CachePlan, Pictures
from imageprompt.training.cache.store import Addresses, CacheError, Store, partitions
from imageprompt.training.data.feature_extractors import FeatureExtractors
from imageprompt.training.data.scan import Quarantine
from imageprompt.training.data.sources import Record, Records
from imageprompt.training.data.sources.contract import HASH

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")
SHARD_BYTES = 2**26
SHARD_ENTRIES = 1024

Entry = dict[str, Tensor]
OnProgress = Callable[[str, int, int], None]
"""Progress callback: (phase, done, total)."""


@dataclass(frozen=True)
class _Job:
    """A picture to open: the sample it belongs to, and what is missing of it."""

    digest: bytes
    sample: int
    is_reference: bool
    views: tuple[int, ...]
    """Numbers of the views whose moments are missing."""
    feature: bool


class CacheEncoder:
    """Encodes what the stores lack of a plan: first pictures, then captions."""

    def __init__(
        self,
        records: Records,
        extractors: FeatureExtractors,
        plan: CachePlan,
        stores: Mapping[str, Store],
        quarantine: Quarantine,
        *,
        batch_size: int,
        on_progress: OnProgress,
    ) -> None:
        self._records, self._extractors, self._plan = records, extractors, plan
        self._stores, self._quarantine = stores, quarantine
        self._batch_size, self._on_progress = batch_size, on_progress
        self._largest = {kind: plan.entries(kind).largest for kind in stores}
        self._pool = ThreadPoolExecutor(min(8, batch_size))
        self.encoded = dict.fromkeys(stores, 0)
        """Number of entries by kind that this process has encoded."""

    def encode_pictures(self) -> None:
        """Moments and image features. Every picture that something is missing of is opened once.

        Broken pictures go into the quarantine and are marked in the plan's scan. Raises
        PictureError (too many broken), CacheError (disk full, picture replaced).
        """
        pictures, broken, done = self._plan.pictures(), set[bytes](), 0

        def work(name: str, digests: Addresses) -> None:
            nonlocal done
            self._encode_partition(name, self._jobs(pictures, digests), broken)
            done += len(digests)
            self._on_progress("pictures", done, len(pictures.hashes))

        kinds = [kind for kind in self._stores if kind != "text"]
        self._each_partition(pictures.hashes, kinds, work)
        self._mark_twins(broken)

    def encode_captions(self) -> None:
        """Text states of all captions. Raises CacheError."""
        entries, store, done = self._plan.entries("text"), self._stores["text"], 0

        def work(name: str, addresses: Addresses) -> None:
            nonlocal done
            batches = self._batches("text", name, self._text)
            missing = addresses[~store.has(addresses)]
            samples = entries.samples_of(missing)
            for one, sample in zip(missing.tolist(), samples, strict=True):
                batches.add(one, self._records.record(sample).text, None)
            batches.flush()
            done += len(addresses)
            self._on_progress("captions", done, len(entries.addresses))

        self._each_partition(entries.addresses, ["text"], work)

    def _each_partition(
        self, addresses: Addresses, kinds: Sequence[str], work: Callable[[str, Addresses], None]
    ) -> None:
        """Call `work` for every partition while holding its locks, the free ones first."""
        stores = [self._stores[kind] for kind in kinds]
        waiting = partitions(addresses)
        for wait in (False, True):
            for name, members in list(waiting.items()):
                try:
                    with ExitStack() as locks:
                        for store in stores:
                            locks.enter_context(store.writing(name, wait=wait))
                        work(name, members)
                    del waiting[name]
                except BusyError:
                    continue
        for store in stores:
            store.refresh()

    def _batches(
        self, kind: str, partition: str, encode: Callable[[Sequence[T]], Iterator[Entry]]
    ) -> _Batches[T]:
        def write(entries: dict[bytes, Entry]) -> None:
            self._stores[kind].write(partition, entries)
            self.encoded[kind] += len(entries)

        size = max(1, min(SHARD_BYTES // max(self._largest[kind], 1), SHARD_ENTRIES))
        return _Batches(encode, write, self._batch_size, size)

    # ── pictures ────────────────────────────────────────────────────────────────────────────────

    def _jobs(self, pictures: Pictures, digests: Addresses) -> Iterator[_Job]:
        """A job for each of these pictures of which something is missing, or not yet checked."""
        rows = np.searchsorted(pictures.hashes, digests)
        picture_of, reference_of = pictures.picture_of[rows], pictures.reference_of[rows]
        addresses = self._plan.moment_addresses[picture_of]
        has_view = self._stores["moments"].has(addresses.reshape(-1)).reshape(addresses.shape)
        has_view[picture_of < 0] = True
        has_feature = np.ones(len(rows), bool)
        if "features" in self._stores:
            has_feature = self._stores["features"].has(digests) | (reference_of < 0)
        # what an entry was once encoded from is a good picture
        encoded = has_view.any(axis=1) & (picture_of >= 0)
        if "features" in self._stores:
            encoded |= has_feature & (reference_of >= 0)
        unchecked = pictures.unchecked[rows] & ~encoded
        for row in np.flatnonzero(unchecked | ~has_view.all(axis=1) | ~has_feature).tolist():
            is_reference = bool(picture_of[row] < 0)
            sample = int(reference_of[row] if is_reference else picture_of[row])
            views = tuple(np.flatnonzero(~has_view[row]).tolist())
            digest = bytes(digests[row])
            yield _Job(digest, sample, is_reference, views, not has_feature[row])

    def _encode_partition(self, name: str, jobs: Iterator[_Job], broken: set[bytes]) -> None:
        moments = self._batches("moments", name, self._moments)
        features = self._batches("features", name, self._features) if self._has_features else None
        for some in _chunks(list(jobs), self._batch_size):
            for job, opened in zip(some, self._pool.map(self._open, some), strict=True):
                if isinstance(opened, PictureError):
                    broken.add(job.digest)
                    self._mark_broken(job.sample, str(opened))
                    continue
                picture, views = opened
                for number, view in zip(job.views, views, strict=True):
                    one = bytes(self._plan.moment_addresses[job.sample, number])
                    moments.add(one, view, view.size)
                if job.feature and features is not None:
                    features.add(job.digest, picture, None)
        moments.flush()
        if features is not None:
            features.flush()

    @property
    def _has_features(self) -> bool:
        return "features" in self._stores

    def _open(self, job: _Job) -> tuple[Image, list[Image]] | PictureError:
        """The picture and those views of it that are missing."""
        record = self._records.record(job.sample)
        try:
            picture, digest = record.open_with_hash(reference=job.is_reference)
        except PictureError as error:
            return error
        known = None if job.is_reference else tuple(self._plan.scan["size"][job.sample].tolist())
        if digest[:HASH].hex().encode() != job.digest or known not in (None, picture.size):
            raise _replaced(record)
        views = self._plan.views(job.sample) if job.views else []
        return picture, [views[number].apply(picture) for number in job.views]

    def _mark_broken(self, index: int, reason: str) -> None:
        self._plan.scan.mark_broken(index, reason)
        self._quarantine.add(index, reason)

    def _mark_twins(self, broken: set[bytes]) -> None:
        """Mark the other samples that use a broken picture, each with a reason of its own."""
        if not broken:
            return
        good, bad = self._plan.good, np.array(sorted(broken), "S32")
        for is_reference, column in ((False, "picture"), (True, "reference")):
            for index in good[np.isin(self._plan.hashes(column, good), bad)].tolist():
                if index in self._quarantine:
                    continue
                record = self._records.record(index)
                try:
                    record.open_with_hash(reference=is_reference)
                except PictureError as error:
                    self._mark_broken(index, str(error))
                else:
                    raise _replaced(record)

    # ── encoding ────────────────────────────────────────────────────────────────────────────────

    def _moments(self, pictures: Sequence[Image]) -> Iterator[Entry]:
        return ({"moments": one.clone()} for one in self._extractors.vae.encode(pictures))

    def _features(self, pictures: Sequence[Image]) -> Iterator[Entry]:
        return ({"encoded": one.clone()} for one in self._extractors.encode_references(pictures))

    def _text(self, captions: Sequence[str]) -> Iterator[Entry]:
        states, added = self._extractors.encode_text(captions)
        counts = self._extractors.token_counts(captions)
        for row, count in enumerate(counts):
            parts = {"states": states[row].clone(), "tokens": torch.tensor(count)}
            yield parts | {name: value[row].clone() for name, value in added.items()}


class _Batches(Generic[T]):
    """Encodes items of like shape in batches, and writes a shard whenever one is full.

    Batches never span two shards, so that a cache does not depend on where a build was killed.
    """

    def __init__(
        self,
        encode: Callable[[Sequence[T]], Iterator[Entry]],
        write: Callable[[dict[bytes, Entry]], None],
        batch_size: int,
        shard_size: int,
    ) -> None:
        self._encode, self._write = encode, write
        self._batch_size, self._shard_size = batch_size, shard_size
        self._waiting: dict[object, list[tuple[bytes, T]]] = {}
        self._entries: dict[bytes, Entry] = {}
        self._count = 0

    def add(self, address: bytes, item: T, shape: object) -> None:
        """Add an item; only items of equal `shape` share a batch."""
        group = self._waiting.setdefault(shape, [])
        group.append((address, item))
        self._count += 1
        if self._count == self._shard_size:
            self.flush()
        elif len(group) == self._batch_size:
            self._encode_group(shape)

    def flush(self) -> None:
        """Encode and write what is left."""
        for shape in list(self._waiting):
            self._encode_group(shape)
        if self._entries:
            self._write(self._entries)
        self._entries, self._count = {}, 0

    def _encode_group(self, shape: object) -> None:
        group = self._waiting.pop(shape)
        encoded = self._encode([item for _, item in group])
        for (address, _), entry in zip(group, encoded, strict=True):
            self._entries[address] = entry


def _replaced(record: Record) -> CacheError:
    return CacheError(
        f"picture {record.key!r}",
        reason="was replaced while the cache was being built",
        hint="Run `imageprompt build-cache` again.",
    )


def _chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))
