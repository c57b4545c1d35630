"""The headers of a tar file: its members, and where their bytes lie. Nothing is unpacked.

Python's tarfile reads extended headers and numbers of any length; here both are limited.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

BLOCK = 512
MAX_NAME = 4096
"""Bytes of a member's name: PATH_MAX of Linux."""
MAX_RECORDS = 2**15
"""Bytes of a pax header: a name, a size, a few times and attributes."""

_ZEROS = bytes(BLOCK)
_OCTAL = re.compile(rb" *([0-7]*)[ \0]*")
_DIRECTORY, _SPARSE = b"5", b"S"
_FILES = (b"0", b"\0", b"7", _SPARSE)
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", _DIRECTORY, b"6")  # links, devices, pipes
_LONG_NAME, _LONG_LINK, _RECORDS, _GLOBAL_RECORDS = b"L", b"K", (b"x", b"X"), b"g"
_OF_ONE_MEMBER = (b"path", b"size")
_SPARSE_RECORD = b"GNU.sparse."


class DamagedTarError(ValueError):
    """A tar file that is damaged from the byte `offset` on."""

    def __init__(self, offset: int, reason: str = "") -> None:
        super().__init__(f"damaged or truncated at byte {offset}{reason and f' ({reason})'}")
        self.offset = offset


@dataclass(frozen=True)
class Member:
    """A member that is not a folder; `usable` if its bytes are those of a regular file."""

    name: str
    offset: int
    size: int
    usable: bool


@dataclass
class _Extension:
    """What extended headers say of the member that follows them."""

    name: bytes | None = None
    size: int | None = None
    sparse: bool = False


def members(stream: Any, total: int) -> Iterator[Member]:
    """Every member of a tar file of `total` bytes, up to its end mark. Raises DamagedTarError."""
    position, extension = 0, _Extension()
    while (block := _block(stream, position)) != _ZEROS:
        size, kind = _number(block[124:136], position), block[156:157]
        start = position + BLOCK
        if kind in (_LONG_NAME, _LONG_LINK, *_RECORDS, _GLOBAL_RECORDS):
            _extend(extension, kind, _body(stream, kind, size, start), position)
            position = start + _padded(size)
            continue
        name = _name(block) if extension.name is None else extension.name
        while kind == _SPARSE and block[482 if start == position + BLOCK else 504]:
            block = stream.read(BLOCK).ljust(BLOCK, b"\0")  # more of its map of holes
            start += BLOCK
        if kind == b"\0" and name.endswith(b"/"):  # of tar files older than POSIX
            kind = _DIRECTORY
        size = 0 if kind in _WITHOUT_DATA else size if extension.size is None else extension.size
        if start + size > total:
            raise DamagedTarError(start)
        if kind != _DIRECTORY:
            usable = kind in _FILES and kind != _SPARSE and not extension.sparse
            yield Member(name.decode("utf-8", "surrogateescape"), start, size, usable)
        position, extension = start + _padded(size), _Extension()


def _block(stream: Any, position: int) -> bytes:
    """The header at `position`, if its checksum is right, or the zeros of the end."""
    stream.seek(position)
    block: bytes = stream.read(BLOCK)
    if len(block) < BLOCK:
        raise DamagedTarError(position)
    if block != _ZEROS:
        unsigned = sum(block) - sum(block[148:156]) + 8 * ord(" ")
        stated = _number(block[148:156], position)
        if stated != unsigned and stated != unsigned - 256 * _high_bytes(block):
            raise DamagedTarError(position)
    return block


def _high_bytes(block: bytes) -> int:
    """Bytes that some old programs add up as negative numbers."""
    return sum(byte > 127 for byte in block[:148] + block[156:])


def _name(block: bytes) -> bytes:
    """The name in a header: up to 100 bytes, and a prefix in POSIX's format."""
    name, prefix = (part.partition(b"\0")[0] for part in (block[:100], block[345:500]))
    return prefix + b"/" + name if prefix and block[257:263] == b"ustar\0" else name


def _number(field: bytes, position: int) -> int:
    """Octal digits, or GNU's big-endian bytes after 0x80."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    found = _OCTAL.fullmatch(field)
    if found is None:
        raise DamagedTarError(position, "a field that is not a number")
    return int(found[1] or b"0", 8)


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _body(stream: Any, kind: bytes, size: int, start: int) -> bytes:
    limit = MAX_NAME if kind in (_LONG_NAME, _LONG_LINK) else MAX_RECORDS
    if size > limit:
        raise DamagedTarError(start - BLOCK, f"a header of {size} bytes; the limit is {limit}")
    body: bytes = stream.read(size)
    if len(body) < size:
        raise DamagedTarError(start)
    return body


def _extend(extension: _Extension, kind: bytes, body: bytes, position: int) -> None:
    """Add what an extended header says. Raises DamagedTarError."""
    if kind == _LONG_NAME:
        extension.name = body.partition(b"\0")[0]
    elif kind != _LONG_LINK:
        records = _records(body, position)
        sparse = any(key.startswith(_SPARSE_RECORD) for key in records)
        if kind == _GLOBAL_RECORDS:
            if sparse or any(key in records for key in _OF_ONE_MEMBER):
                raise DamagedTarError(position, "one name or size for all members")
            return
        extension.sparse |= sparse
        if (name := records.get(b"path")) is not None:
            if len(name) > MAX_NAME:
                raise DamagedTarError(position, f"a name of {len(name)} bytes")
            extension.name = name
        if (size := records.get(b"size")) is not None:
            if not size.isdigit() or len(size) > 19:
                raise DamagedTarError(position, "a size that is not a number")
            extension.size = int(size)


def _records(body: bytes, position: int) -> dict[bytes, bytes]:
    """pax records, "LENGTH KEY=VALUE\\n" each."""
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(body) and body[at]:
        digits = body[at : at + 8].partition(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        record = body[at : at + length]
        key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if len(record) < length or not record.endswith(b"\n") or not key or not equals:
            raise DamagedTarError(position, "a damaged pax record")
        found[key] = value
        at += length
    return found
