"""The records of a zip archive, from its directory: where each lies, nothing unpacked.

Python's own reader takes whatever a directory claims into memory; this one is bounded, and it
refuses what two readers could understand in two ways (names given twice, records that disagree
with the directory).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from imageprompt.checkpoint.read.raw import RawFile
from imageprompt.checkpoint.read.refusals import refuse

MAX_DIRECTORY = 8 * 2**20  # some 80,000 records
STORED, DEFLATED = 0, 8
_AGAIN = "Download it again."
_ENTRY = struct.Struct("<4s6H3L5H2L")
_TAIL = struct.Struct("<4s4H2LH")
_TAIL64 = struct.Struct("<4sQ2H2L4Q")
_LOCAL = struct.Struct("<4s5H3L2H")
_FULL = 0xFFFFFFFF  # "see the 64-bit field"


@dataclass(frozen=True, slots=True)
class Record:
    """One file of the archive; `header` is where its local header is."""

    name: str
    method: int
    packed: int
    size: int
    header: int


def read_records(raw: RawFile) -> dict[str, Record]:
    """Name -> record. Raises AdapterFileError where the archive is cut off or inconsistent."""
    offset, size = _directory(raw)
    if size > MAX_DIRECTORY:
        refuse(raw.path, f"its zip directory claims {size} bytes", _AGAIN)
    directory = raw.at(offset, size)
    records: dict[str, Record] = {}
    position = 0
    while position < size:
        record, position = _entry(raw, directory, position)
        if record.name in records:
            refuse(raw.path, f"its zip directory names {record.name[:80]!r} twice", _AGAIN)
        records[record.name] = record
    return records


def data_offset(raw: RawFile, record: Record) -> int:
    """Where the record's bytes begin in the window; checked against its local header."""
    header = _LOCAL.unpack(raw.at(record.header, _LOCAL.size))
    magic, flags, method, name_size, extra_size = (header[i] for i in (0, 2, 3, 9, 10))
    begin: int = record.header + _LOCAL.size + name_size + extra_size
    if magic != b"PK\3\4" or method != record.method or begin + record.packed > raw.size:
        refuse(raw.path, f"its record {record.name[:80]!r} is damaged", _AGAIN)
    if flags & 1:
        refuse(raw.path, "it is encrypted", "Unpack it with its password first.")
    return begin


def _directory(raw: RawFile) -> tuple[int, int]:
    """Offset and size of the directory, from the record at the end of the file."""
    tail_size = min(raw.size, _TAIL.size + 0xFFFF)
    tail = raw.at(raw.size - tail_size, tail_size)
    found = tail.rfind(b"PK\5\6")
    if found < 0 or len(tail) - found < _TAIL.size:
        refuse(raw.path, "it is cut off: the directory at its end is missing", _AGAIN)
    *_, size, offset, _ = _TAIL.unpack_from(tail, found)
    if _FULL in (size, offset):
        locator = raw.size - tail_size + found - 20
        magic, _, where, _ = struct.unpack("<4sLQL", raw.at(locator, 20))
        fields = _TAIL64.unpack(raw.at(where, _TAIL64.size)) if magic == b"PK\6\7" else (b"",)
        if fields[0] != b"PK\6\6":
            refuse(raw.path, "its zip directory is damaged", _AGAIN)
        size, offset = fields[-2:]
    return offset, size


def _entry(raw: RawFile, directory: bytes, position: int) -> tuple[Record, int]:
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
        refuse(raw.path, "its zip directory is damaged", _AGAIN)
    if magic != b"PK\1\2" or len(name) < 1:
        refuse(raw.path, "its zip directory is damaged", _AGAIN)
    return Record(name, method, packed, size, header), (
        position + name_size + extra_size + comment_size
    )


def _wide(extra: bytes, packed: int, size: int, header: int) -> tuple[int, int, int]:
    """The three numbers, taken from the 64-bit extra field where the short ones are full."""
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
