"""torch's zip files: a pickle of the structure, and one record of raw bytes for each storage.

Python's own zip reader loads whatever a directory claims into memory. This one is bounded, and
refuses what two readers could understand differently (duplicate names, records that disagree with
the directory). Nothing is unpacked before it is needed.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from imageprompt.checkpoint.read.pickle.machine import MAX_PICKLE, PickleError
from imageprompt.checkpoint.read.pickle.torch_objects import TensorView, TorchPickle
from imageprompt.checkpoint.read.pickle.torch_tensors import (
    StorageBytes,
    UnpickledFile,
    refuse_pickle,
)
from imageprompt.checkpoint.read.raw import DOWNLOAD_AGAIN, RawFile, refuse
from imageprompt.checkpoint.read.stored_tensor import StoredTensor

MAX_DIRECTORY = 8 * 2**20  # about 80,000 records
STORED, DEFLATED = 0, 8
_ENTRY = struct.Struct("<4s6H3L5H2L")
_TAIL = struct.Struct("<4s4H2LH")
_TAIL64 = struct.Struct("<4sQ2H2L4Q")
_LOCAL = struct.Struct("<4s5H3L2H")
_FULL = 0xFFFFFFFF  # "see the 64-bit field"


@dataclass(frozen=True, slots=True)
class ZipRecord:
    """A file in the archive; `header` is the offset of its local header."""

    name: str
    method: int
    packed: int
    size: int
    header: int


def read_torch_zip(raw: RawFile) -> UnpickledFile:
    """What a torch zip file contains. Raises AdapterFileError; no storage is read."""
    records = _read_records(raw)
    pickles = [name for name in records if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1 or any(name.endswith("/constants.pkl") for name in records):
        from imageprompt.checkpoint.read.refusals import explain_zip

        explain_zip(raw.path, records)
    prefix = pickles[0].removesuffix("data.pkl")
    order = records.get(f"{prefix}byteorder")
    big_endian = order is not None and order.size < 16 and _content(raw, order) == b"big"
    pickle = TorchPickle(budget=raw.budget)
    try:
        value, _ = pickle.read(_content(raw, records[pickles[0]]))
    except PickleError as error:
        refuse_pickle(raw.path, error)
    storages: dict[str, StorageBytes] = {}

    def locate(view: TensorView) -> StoredTensor:
        key = view.storage.key
        if key not in storages:
            record = records.get(f"{prefix}data/{key}")
            if record is None or record.size != view.storage.nbytes:
                refuse(raw.path, f"its storage {key[:20]!r} is missing or cut off", DOWNLOAD_AGAIN)
            storages[key] = _storage_bytes(raw, record, big_endian)
        return storages[key].tensor(view, raw.budget)

    return UnpickledFile(value, "torch zip", locate, pickle.unopened)


def _storage_bytes(raw: RawFile, record: ZipRecord, big_endian: bool = False) -> StorageBytes:
    if record.method not in (STORED, DEFLATED):
        reason = f"zip compression {record.method} is not supported"
        refuse(raw.path, reason, "Save it again with torch.save.")
    if record.method == STORED and record.packed != record.size:
        refuse(raw.path, f"its record {record.name[:80]!r} is damaged", DOWNLOAD_AGAIN)
    return StorageBytes(
        raw.path,
        raw.stamp,
        raw.base + _data_offset(raw, record),
        record.packed,
        record.size,
        record.method == DEFLATED,
        big_endian,
    )


def _content(raw: RawFile, record: ZipRecord) -> bytes:
    """A small record, unpacked."""
    if record.size > MAX_PICKLE:
        what = f"its record {record.name[:80]!r} has {record.size} bytes"
        refuse(raw.path, f"{what}; the limit is {MAX_PICKLE}")
    raw.budget.read(record.size)
    return b"".join(_storage_bytes(raw, record).read(0, record.size))


# ── the zip archive ──────────────────────────────────────────────────────────────────────────────


def _read_records(raw: RawFile) -> dict[str, ZipRecord]:
    """Name -> record. Raises AdapterFileError if the archive is cut off or inconsistent."""
    offset, size = _directory(raw)
    if size > MAX_DIRECTORY:
        refuse(raw.path, f"its zip directory claims {size} bytes", DOWNLOAD_AGAIN)
    directory = raw.read_at(offset, size)
    raw.budget.add(size // _ENTRY.size)
    records: dict[str, ZipRecord] = {}
    position = 0
    while position < size:
        record, position = _entry(raw, directory, position)
        if record.name in records:
            refuse(raw.path, f"its zip directory lists {record.name[:80]!r} twice", DOWNLOAD_AGAIN)
        records[record.name] = record
    return records


def _data_offset(raw: RawFile, record: ZipRecord) -> int:
    """Offset of the record's bytes in the window, checked against its local header."""
    header = _LOCAL.unpack(raw.read_at(record.header, _LOCAL.size))
    magic, flags, method, name_size, extra_size = (header[i] for i in (0, 2, 3, 9, 10))
    begin: int = record.header + _LOCAL.size + name_size + extra_size
    if magic != b"PK\3\4" or method != record.method or begin + record.packed > raw.size:
        refuse(raw.path, f"its record {record.name[:80]!r} is damaged", DOWNLOAD_AGAIN)
    if flags & 1:
        refuse(raw.path, "the archive is encrypted", "Unpack it with its password first.")
    return begin


def _directory(raw: RawFile) -> tuple[int, int]:
    """Offset and size of the directory, from the record at the end of the file."""
    tail_size = min(raw.size, _TAIL.size)
    tail = raw.read_at(raw.size - tail_size, tail_size)
    if not (tail.startswith(b"PK\5\6") and tail.endswith(b"\0\0")):  # a comment follows it
        tail_size = min(raw.size, _TAIL.size + 0xFFFF)
        tail = raw.read_at(raw.size - tail_size, tail_size)
    found = tail.rfind(b"PK\5\6")
    if found < 0 or len(tail) - found < _TAIL.size:
        fault = "the file is cut off: the zip directory at its end is missing"
        refuse(raw.path, fault, DOWNLOAD_AGAIN)
    *_, size, offset, _ = _TAIL.unpack_from(tail, found)
    if _FULL in (size, offset):
        locator = raw.size - tail_size + found - 20
        magic, _, where, _ = struct.unpack("<4sLQL", raw.read_at(locator, 20))
        fields = _TAIL64.unpack(raw.read_at(where, _TAIL64.size)) if magic == b"PK\6\7" else (b"",)
        if fields[0] != b"PK\6\6":
            refuse(raw.path, "its zip directory is damaged", DOWNLOAD_AGAIN)
        size, offset = fields[-2:]
    return offset, size


def _entry(raw: RawFile, directory: bytes, position: int) -> tuple[ZipRecord, int]:
    try:
        fields = _ENTRY.unpack_from(directory, position)
        magic, flags, method = fields[0], fields[3], fields[4]
        packed, size, name_size, extra_size, comment_size = fields[8:13]
        header = fields[16]
        position += _ENTRY.size
        name = directory[position : position + name_size].decode(
            "utf-8" if flags & 0x800 else "cp437"
        )
        extra = directory[position + name_size : position + name_size + extra_size]
        packed, size, header = _wide(extra, packed, size, header)
    except (struct.error, UnicodeDecodeError, IndexError):
        refuse(raw.path, "its zip directory is damaged", DOWNLOAD_AGAIN)
    if magic != b"PK\1\2" or len(name) < 1:
        refuse(raw.path, "its zip directory is damaged", DOWNLOAD_AGAIN)
    return ZipRecord(name, method, packed, size, header), (
        position + name_size + extra_size + comment_size
    )


def _wide(extra: bytes, packed: int, size: int, header: int) -> tuple[int, int, int]:
    """The three numbers, from the 64-bit extra field where the short ones are full."""
    if _FULL not in (packed, size, header):
        return packed, size, header
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, position)
        if kind == 1:
            wide = list(struct.unpack_from(f"<{length // 8}Q", extra, position + 4))
            size = wide.pop(0) if size == _FULL else size
            packed = wide.pop(0) if packed == _FULL else packed
            header = wide.pop(0) if header == _FULL else header
            return packed, size, header
        position += 4 + length
    raise IndexError
