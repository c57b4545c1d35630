"""A first look at all samples: which can be read, how large they are, what their bytes hash to."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from imageprompt.core.errors import PictureError
from imageprompt.training.cache.store import save_tensors
from imageprompt.training.data.sources import Records

_SHOWN = 5


class Quarantine:
    """What could not be read, each with the reason. At least one sample may always be broken."""

    def __init__(self, total: int, share: float, troubles: Mapping[str, str]) -> None:
        self._total, self._allowed = total, max(1, int(share * total))
        self._share = share
        self._troubles = dict(troubles)
        self._samples: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._samples)

    def __contains__(self, index: int) -> bool:
        return index in self._samples

    def add(self, index: int, why: str) -> None:
        """A sample that cannot be read. Raises PictureError when there are too many."""
        self._samples[index] = why
        if len(self._samples) > self._allowed or len(self._samples) == self._total:
            raise PictureError(
                f"{len(self)} of {self._total} samples",
                reason=f"they cannot be read, and data.max_broken is {self._share:g}; the first are: "
                + " ".join(self.lines()[:_SHOWN]),
                hint="Repair or remove them, or allow more.",
            )

    def lines(self) -> list[str]:
        """A line each: damaged shards first, then samples in their order."""
        shards = [f"{name}: {why}" for name, why in self._troubles.items()]
        return shards + [self._samples[index] for index in sorted(self._samples)]


UNIT = 1024  # samples looked at under one lock and kept in one file
HASH = 16  # bytes


@dataclass(frozen=True)
class ScanResult:
    """n samples, by columns [n, ...]; what could not be read has zeros there.

    `picture`, `reference`, `caption`: hashes, uint8 [n, 16]. `size`: width and height, int32,
    known from the header even where the rest is broken. `good`: can it be used? `face`: embeddings,
    float32, where they were asked for. `broken`: why not, by index.
    """

    columns: dict[str, NDArray[Any]]
    broken: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.columns["good"])

    def __getitem__(self, column: str) -> NDArray[Any]:
        return self.columns[column]


@dataclass
class _Look:
    """What a look at one sample on_progress."""

    stamp: bytes
    picture: bytes = bytes(HASH)
    reference: bytes = bytes(HASH)
    caption: bytes = bytes(HASH)
    size: tuple[int, int] = (0, 0)
    face: NDArray[np.float32] | None = None
    why: str = "not looked at"

    @property
    def good(self) -> bool:
        return not self.why


def scan(
    records: Records,
    folder: Path,
    *,
    faces: bool,
    quarantine: Quarantine,
    on_progress: Callable[[int], None] = lambda count: None,
) -> ScanResult:
    """Look at every sample once, whoever of several processes does it; the rest is on disk.

    Every picture is decoded, so that what is broken is known before anything is trained on.
    `on_progress` hears how many samples each unit has brought. Raises PictureError (too many broken).
    """
    place = folder / f"{records.fingerprint()}{'-faces' if faces else ''}"
    place.mkdir(parents=True, exist_ok=True)
    units = [range(at, min(at + UNIT, len(records))) for at in range(0, len(records), UNIT)]
    found: dict[int, ScanResult] = {}
    for wait in (False, True):  # first what nobody else is at, then whatever is left
        for unit in units:
            part = found.get(unit.start) or _unit(records, unit, place, faces, wait)
            if part is None or unit.start in found:
                continue
            found[unit.start] = part
            on_progress(len(unit))
            for index, why in part.broken.items():
                quarantine.add(unit.start + index, why)
    return _joined([found[unit.start] for unit in units])


def digest(content: bytes) -> bytes:
    """The hash that stands for a picture or a caption."""
    return hashlib.sha256(content).digest()[:HASH]


def _joined(parts: list[ScanResult]) -> ScanResult:
    starts = np.cumsum([0, *(len(part) for part in parts)])
    broken = {
        int(start) + index: why
        for start, part in zip(starts, parts, strict=False)
        for index, why in part.broken.items()
    }
    if "face" in parts[0].columns:
        _check_faces(parts)
    columns = {name: np.concatenate([p[name] for p in parts]) for name in parts[0].columns}
    return ScanResult(columns, broken)


def _check_faces(parts: list[ScanResult]) -> None:
    shapes = {part["face"].shape[1:] for part in parts}
    if len(shapes) > 1:
        raise PictureError(
            f"face embeddings of shapes {', '.join(str(list(shape)) for shape in shapes)}",
            reason="all samples have as many faces, of one width",
            hint="Compute them again, all in one way.",
        )


def _unit(records: Records, unit: range, place: Path, faces: bool, wait: bool) -> ScanResult | None:
    """A unit, from the disk if nothing has changed since; None if another process is at it."""
    path = place / f"{unit.start:09d}.safetensors"
    try:
        with FileLock(path.with_suffix(".lock"), timeout=-1 if wait else 0):
            threads = min(8, os.cpu_count() or 1)  # decoders let go of the interpreter
            with ThreadPoolExecutor(threads) as pool:
                stamps = list(pool.map(lambda index: _stamp(records, index), unit))
                kept = _read(path, stamps)
                if kept is not None:
                    return kept
                looks = list(
                    pool.map(lambda i, stamp: _look(records, i, stamp, faces), unit, stamps)
                )
            for left in place.glob(f".{path.stem}.*.tmp.safetensors"):
                left.unlink(missing_ok=True)  # of a process that was killed: we hold the lock
            return _written(path, looks, faces)
    except Timeout:
        return None


def _stamp(records: Records, index: int) -> bytes:
    """Changes when anything of a sample is replaced; only names, sizes and times are read."""
    try:
        record = records.record(index)
    except PictureError as error:
        return digest(str(error).encode())
    blobs = [one for one in (record.picture, record.reference, record.id_embed) if one is not None]
    return digest("\n".join([record.text, *(blob.stamp() for blob in blobs)]).encode())


def _look(records: Records, index: int, stamp: bytes, faces: bool) -> _Look:
    look = _Look(stamp)
    try:
        record = records.record(index)
        look.size = record.size()
        record.open_picture()
        look.picture = look.reference = digest(record.picture.read())
        if record.reference is not None:
            record.open_reference()
            look.reference = digest(record.reference.read())
        look.caption = digest(record.text.encode())
        look.face = record.id_embeds() if faces else None
        look.why = ""
    except PictureError as error:
        look.why = str(error)
    return look


def _written(path: Path, looks: list[_Look], faces: bool) -> ScanResult:
    """Write a unit. Samples whose faces are not shaped like the first one's are broken."""
    shape = next((one.face.shape for one in looks if one.face is not None), (0,))
    for one in looks:
        if one.face is not None and one.face.shape != shape:
            one.why = f"A face embedding is {list(one.face.shape)} where others are {list(shape)}."
    hashes = ("stamp", "picture", "reference", "caption")
    columns: dict[str, NDArray[Any]] = {
        name: np.frombuffer(b"".join(getattr(one, name) for one in looks), np.uint8).reshape(
            -1, HASH
        )
        for name in hashes
    }
    columns["size"] = np.array([one.size for one in looks], np.int32)
    columns["good"] = np.array([one.good for one in looks], np.uint8)
    if faces:
        none = np.zeros(shape, np.float32)
        kept = [one.face if one.good and one.face is not None else none for one in looks]
        columns["face"] = np.stack(kept)
    broken = {index: one.why for index, one in enumerate(looks) if not one.good}
    tensors = {name: torch.from_numpy(column.copy()) for name, column in columns.items()}
    save_tensors(path, tensors, {"broken": json.dumps(broken)})
    return ScanResult(columns, broken)


def _read(path: Path, stamps: list[bytes]) -> ScanResult | None:
    """A unit from the disk; None if there is none, or one that cannot be read, or an old one."""
    from safetensors import safe_open

    try:
        with safe_open(path, framework="numpy") as handle:
            columns = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
            broken = json.loads(handle.metadata()["broken"])
    except Exception:  # missing, cut short, or not ours: it is looked at again
        return None
    if columns["stamp"].tobytes() != b"".join(stamps):
        return None
    return ScanResult(columns, {int(index): why for index, why in broken.items()})
