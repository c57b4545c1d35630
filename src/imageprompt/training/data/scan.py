"""Scans all samples: their hashes and picture sizes, and which of them cannot be read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from imageprompt.core.atomic_files import BusyError, locked, sweep
from imageprompt.core.errors import PictureError, printable, shortened
from imageprompt.core.untrusted import parse_json
from imageprompt.training.cache.store import check_inside, open_tensors, save_tensors
from imageprompt.training.data.sources import Records
from imageprompt.training.data.sources.contract import HASH

UNIT = 1024
"""Samples scanned under one lock and stored in one file."""
MAX_SIDE = 2**16
"""Pixels of a picture's side; JPEG, the largest of the formats, has two bytes for it."""
_COLUMNS: Mapping[str, tuple[type[np.generic], tuple[int, ...]]] = {
    **dict.fromkeys(("stamp", "picture", "reference", "caption"), (np.uint8, (HASH,))),
    "size": (np.int32, (2,)),
    "good": (np.uint8, ()),
    "decoded": (np.uint8, ()),
}
_LISTED = 5  # samples named in an error


class Quarantine:
    """The samples that could not be read, and why. At least one broken sample is always allowed."""

    def __init__(self, total: int, max_broken: float, problems: Mapping[str, str]) -> None:
        """`max_broken`: share of the samples; `problems`: those of the source, by name."""
        self._total, self._allowed = total, max(1, int(max_broken * total))
        self._max_broken = max_broken
        self._problems = dict(problems)
        self._samples: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._samples)

    def __contains__(self, index: int) -> bool:
        return index in self._samples

    def add(self, index: int, reason: str) -> None:
        """Add a sample that cannot be read. Raises PictureError when there are too many."""
        self._samples[index] = reason
        self.check()

    def check(self) -> None:
        """Raises PictureError when there are too many; other threads may have added the last."""
        if len(self._samples) > self._allowed or len(self._samples) == self._total:
            first = " ".join(self.lines()[:_LISTED])
            raise PictureError(
                f"{len(self)} of {self._total} samples",
                reason=f"cannot be read, and data.max_broken is {self._max_broken:g}: {first}",
                hint="Repair or remove them, or raise data.max_broken.",
            )

    def lines(self) -> list[str]:
        """A line each: damaged shards first, then samples by index."""
        shards = [f"{name}: {reason}" for name, reason in self._problems.items()]
        return shards + [self._samples[index] for index in sorted(self._samples)]


@dataclass(frozen=True)
class ScanResult:
    """n samples by columns [n, ...]; unreadable samples have zeros.

    `picture`, `reference`, `caption`: hashes, uint8 [n, 16]. `size`: width and height, int32, from
    the header, so known for some broken samples too. `good`: usable, uint8. `decoded`: the pictures
    were decoded, not only their headers read, uint8. `face`: embeddings, float32, if requested.
    `stamp`: changes when a sample's files do, uint8 [n, 16]. `broken`: the reason by index.
    """

    columns: dict[str, NDArray[Any]]
    broken: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.columns["good"])

    def __getitem__(self, column: str) -> NDArray[Any]:
        return self.columns[column]

    def mark_broken(self, index: int, reason: str) -> None:
        """A sample whose picture turned out to be damaged beyond its header."""
        self["good"][index] = 0
        self.broken[index] = reason


@dataclass
class _Row:
    """What the scan of one sample finds."""

    stamp: bytes
    decoded: bool
    picture: bytes = bytes(HASH)
    reference: bytes = bytes(HASH)
    caption: bytes = bytes(HASH)
    size: tuple[int, int] = (0, 0)
    face: NDArray[np.float32] | None = None
    reason: str = "not scanned"
    """Why the sample cannot be used; "" if it can."""

    @property
    def good(self) -> bool:
        return not self.reason


class Scan:
    """Scans a list of records: every unit by whichever process gets there first.

    The result is stored in `folder` and read from there by other processes and later, unless the
    files of a sample have changed since.
    """

    def __init__(self, records: Records, folder: Path, *, faces: bool) -> None:
        """`faces`: read the samples' face embeddings too."""
        self._records, self._faces = records, faces
        self._cache = folder.parent
        self._folder = folder / f"{records.fingerprint()}{'-faces' if faces else ''}"
        count = len(records)
        self._units = [range(start, min(start + UNIT, count)) for start in range(0, count, UNIT)]

    def run(
        self,
        quarantine: Quarantine,
        *,
        decode: bool,
        on_progress: Callable[[int], None] = lambda count: None,
    ) -> ScanResult:
        """Scan every sample once.

        `decode`: decode every picture, to find those that are damaged beyond their header.
        `on_progress` receives the number of samples of each unit. Raises PictureError (too many
        broken).
        """
        check_inside(self._folder, self._cache)
        self._folder.mkdir(parents=True, exist_ok=True)
        found: dict[int, ScanResult] = {}
        for wait in (False, True):  # first units that nobody else is scanning, then the others
            for unit in self._units:
                if unit.start in found:
                    continue
                part = self._unit(unit, decode, wait)
                if part is None:
                    continue
                found[unit.start] = part
                on_progress(len(unit))
                for index, reason in part.broken.items():
                    quarantine.add(unit.start + index, reason)
        return _concatenate([found[unit.start] for unit in self._units])

    def save(self, result: ScanResult) -> None:
        """Record that all pictures of `result` were decoded, and which of them are broken."""
        before = result["decoded"].copy()
        result["decoded"][:] = 1
        for unit in self._units:
            rows = slice(unit.start, unit.stop)
            if before[rows].all():
                continue
            columns = {name: column[rows] for name, column in result.columns.items()}
            broken = {i - unit.start: why for i, why in result.broken.items() if i in unit}
            with locked(self._path(unit).with_suffix(".lock")):
                _write(self._path(unit), ScanResult(columns, broken))

    def _path(self, unit: range) -> Path:
        return self._folder / f"{unit.start:09d}.safetensors"

    def _unit(self, unit: range, decode: bool, wait: bool) -> ScanResult | None:
        """A unit, from the disk if it is up to date; None if another process is scanning it."""
        path = self._path(unit)
        try:
            with locked(path.with_suffix(".lock"), timeout=None if wait else 0):
                sweep(self._folder)
                threads = min(8, os.cpu_count() or 1)  # decoders release the interpreter lock
                with ThreadPoolExecutor(threads) as pool:
                    stamps = list(pool.map(self._stamp, unit))
                    stored = _read(path, stamps, self._faces)
                    if stored is not None and (stored["decoded"].all() or not decode):
                        return stored
                    rows = pool.map(lambda i, stamp: self._row(i, stamp, decode), unit, stamps)
                    result = _table(list(rows), self._faces)
                _write(path, result)
                return result
        except BusyError:
            return None

    def _stamp(self, index: int) -> bytes:
        """Changes when a file of a sample is replaced; only names, sizes and times are read."""
        try:
            record = self._records.record(index)
        except PictureError as error:
            return content_hash(str(error).encode())
        files = [one for one in (record.picture, record.reference, record.id_embed) if one]
        parts = "\n".join([record.text, *(one.stamp() for one in files)])
        return content_hash(parts.encode("utf-8", "surrogatepass"))  # names can be any bytes

    def _row(self, index: int, stamp: bytes, decode: bool) -> _Row:
        row = _Row(stamp, decode)
        try:
            record = self._records.record(index)
            if decode:
                row.size = record.size()  # known even if decoding fails
                row.picture = row.reference = record.open_with_hash()[1][:HASH]
            else:
                row.size, data = record.size_and_bytes()
                row.picture = row.reference = content_hash(data)
            if record.reference is not None and decode:
                row.reference = record.open_with_hash(reference=True)[1][:HASH]
            elif record.reference is not None:
                row.reference = content_hash(record.reference.read())
            row.caption = content_hash(record.text.encode())
            row.face = record.id_embeds() if self._faces else None
            row.reason = ""
        except PictureError as error:
            row.reason = str(error)
        return row


def content_hash(content: bytes) -> bytes:
    """The hash that stands for a picture or a caption in the cache."""
    return hashlib.sha256(content).digest()[:HASH]


def _concatenate(parts: list[ScanResult]) -> ScanResult:
    if "face" in parts[0].columns:
        _check_faces(parts)
    columns = {name: np.concatenate([p[name] for p in parts]) for name in parts[0].columns}
    return ScanResult(columns, dict(_broken(parts)))


def _broken(parts: list[ScanResult]) -> Iterator[tuple[int, str]]:
    start = 0
    for part in parts:
        yield from ((start + index, reason) for index, reason in part.broken.items())
        start += len(part)


def _check_faces(parts: list[ScanResult]) -> None:
    shapes = {part["face"].shape[1:] for part in parts}
    if len(shapes) > 1:
        raise PictureError(
            f"face embeddings of shapes {', '.join(str(list(shape)) for shape in shapes)}",
            reason="every sample must have as many faces, of one width",
            hint="Compute all of them in the same way.",
        )


def _table(rows: list[_Row], faces: bool) -> ScanResult:
    """Rows as columns. Samples whose faces are not shaped like the first one's are broken."""
    shape = next((row.face.shape for row in rows if row.face is not None), (0,))
    for row in rows:
        if row.face is not None and row.face.shape != shape:
            row.reason = f"A face embedding is {list(row.face.shape)}, others are {list(shape)}."
    columns: dict[str, NDArray[Any]] = {}
    for name in ("stamp", "picture", "reference", "caption"):
        joined = b"".join(getattr(row, name) for row in rows)
        columns[name] = np.frombuffer(joined, np.uint8).reshape(-1, HASH).copy()
    columns["size"] = np.array([row.size for row in rows], np.int32)
    columns["good"] = np.array([row.good for row in rows], np.uint8)
    columns["decoded"] = np.array([row.decoded for row in rows], np.uint8)
    if faces:
        none = np.zeros(shape, np.float32)
        columns["face"] = np.stack(
            [row.face if row.good and row.face is not None else none for row in rows]
        )
    return ScanResult(columns, {i: row.reason for i, row in enumerate(rows) if not row.good})


def _write(path: Path, result: ScanResult) -> None:
    tensors = {name: torch.from_numpy(column.copy()) for name, column in result.columns.items()}
    save_tensors(path, tensors, {"broken": json.dumps(result.broken)})


def _read(path: Path, stamps: list[bytes], faces: bool) -> ScanResult | None:
    """A stored unit; None if it is missing, damaged or out of date: it is scanned again then."""
    try:
        with open_tensors(path, "numpy") as handle:
            columns = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
            broken = parse_json(handle.metadata()["broken"])
        # files of earlier versions have no such column: their pictures were all decoded
        columns.setdefault("decoded", np.ones_like(columns["good"]))
        if columns["stamp"].tobytes() != b"".join(stamps):
            return None
        return _checked(columns, broken, len(stamps), faces)
    except Exception:  # safetensors, JSON, numpy and the system raise their own
        return None


def _checked(
    columns: dict[str, NDArray[Any]], broken: Any, count: int, faces: bool
) -> ScanResult | None:
    """The result, if it is one of `count` samples that a scan can have."""
    for name, (dtype, shape) in _COLUMNS.items():
        if columns[name].dtype != dtype or columns[name].shape != (count, *shape):
            return None
    if columns.keys() != {*_COLUMNS, *(("face",) if faces else ())}:
        return None
    if faces and (columns["face"].dtype != np.float32 or len(columns["face"]) != count):
        return None
    good, size = columns["good"] != 0, columns["size"]
    if size.min() < 0 or size.max() > MAX_SIDE or size[good].min(initial=1) < 1:
        return None
    reasons = {int(index): printable(shortened(str(why))) for index, why in broken.items()}
    if set(reasons) != set(np.flatnonzero(~good).tolist()):
        return None
    return ScanResult(columns, reasons)
