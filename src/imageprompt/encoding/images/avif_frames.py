"""The sizes of the frames inside an AVIF file, which its container need not tell truly.

A decoder allocates what the AV1 sequence header says (AV1 specification, 5.5; ISO/IEC 14496-12).
"""

from __future__ import annotations

from collections.abc import Iterator

from imageprompt.core.untrusted import Budget, LimitError

_FOLDERS = {b"meta": 4, b"moov": 0, b"trak": 0, b"mdia": 0, b"minf": 0, b"stbl": 0}
"""Boxes that hold boxes, and the bytes before these."""
_SEQUENCE_HEADER = 1
_TEMPORAL_DELIMITER = 2
_OBU_TYPES = {1, 2, 3, 4, 5, 6, 7, 8, 15}


def largest_frame(content: bytes) -> int:
    """Pixels of the largest frame that any sequence header announces; 0 if there is none.

    Raises LimitError for a header whose size cannot be told.
    """
    budget, view = Budget(nbytes=2 * len(content), items=100_000, depth=16), memoryview(content)
    boxes = list(_boxes(content, 0, len(content), budget))
    idat = next((start for kind, start, _ in boxes if kind == b"idat"), 0)
    largest = 0
    for kind, start, end in boxes:
        if kind == b"iloc":
            places = _items(content, start, end, idat, budget)
        elif kind in (b"stco", b"co64"):
            places = _first_chunk(content, start, 8 if kind == b"co64" else 4)
        else:
            continue
        for extents in places:
            parts = [view[at : at + size] for at, size in extents]
            if len(parts) > 1:
                budget.read(sum(map(len, parts)))  # before they are copied
                parts = [memoryview(b"".join(parts))]
            for data in parts:
                largest = max([largest, *_frames(data, budget)])
    return largest


def _boxes(
    content: bytes, at: int, end: int, budget: Budget, depth: int = 0
) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of every box, those inside others too."""
    budget.check_depth(depth)
    while at + 8 <= end:
        budget.add()
        size, kind, head = _number(content, at, 4), content[at + 4 : at + 8], 8
        if size == 1:
            size, head = _number(content, at + 8, 8), 16
        stop = end if size == 0 else min(at + size, end)
        if stop < at + head:
            return
        yield kind, at + head, stop
        if kind in _FOLDERS:
            yield from _boxes(content, at + head + _FOLDERS[kind], stop, budget, depth + 1)
        at = stop


Extents = list[tuple[int, int]]


def _items(content: bytes, at: int, end: int, idat: int, budget: Budget) -> Iterator[Extents]:
    """Where each item of an `iloc` box lies."""
    version, sizes = _number(content, at, 1), _number(content, at + 4, 2)
    offsets, lengths, bases, indices = (sizes >> shift & 15 for shift in (12, 8, 4, 0))
    wide = 4 if version == 2 else 2
    at, count = at + 6 + wide, _number(content, at + 6, wide)
    for _ in range(count):
        budget.add()
        at += wide
        method = 0
        if version in (1, 2):
            method, at = _number(content, at, 2) & 15, at + 2
        base = _number(content, at + 2, bases) + (idat if method == 1 else 0)
        at += 2 + bases
        extents: Extents = []
        many, at = _number(content, at, 2), at + 2
        for _ in range(many):
            budget.add()
            at += indices if version in (1, 2) else 0
            start, size = _number(content, at, offsets), _number(content, at + offsets, lengths)
            extents.append((base + start, size or len(content)))
            at += offsets + lengths
        if at > end:
            return
        yield extents


def _first_chunk(content: bytes, at: int, wide: int) -> Iterator[Extents]:
    """Where a track's samples begin."""
    if _number(content, at + 4, 4):
        yield [(_number(content, at + 8, wide), len(content))]


def _frames(data: memoryview, budget: Budget) -> Iterator[int]:
    """Pixels that each sequence header among these units announces."""
    at = 0
    while at < len(data):
        budget.add()
        head = data[at]
        kind, extended, sized = head >> 3 & 15, head >> 2 & 1, head >> 1 & 1
        if head & 0x81 or kind not in _OBU_TYPES:
            return  # no AV1
        at += 1 + extended
        size = len(data) - at
        if sized:
            size, at = _leb128(data, at)
        if kind == _SEQUENCE_HEADER:
            yield _frame(bytes(data[at : at + min(size, 256)]))
        at += size


def _leb128(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for index in range(8):
        byte = data[at] if at < len(data) else 0
        value, at = value | (byte & 127) << 7 * index, at + 1
        if not byte & 128:
            break
    return value, at


def _frame(data: bytes) -> int:
    """Largest width times largest height of a sequence header."""
    bits = _Bits(data)
    bits.read(4)  # profile, still picture
    if bits.read(1):  # reduced header
        bits.read(5)
    else:
        if bits.read(1):
            raise LimitError("its AV1 data have timing information, which no picture needs")
        delays = bits.read(1)
        for _ in range(bits.read(5) + 1):
            bits.read(12)
            if bits.read(5) > 7:
                bits.read(1)
            if delays and bits.read(1):
                bits.read(4)
    wide, high = bits.read(4) + 1, bits.read(4) + 1
    return (bits.read(wide) + 1) * (bits.read(high) + 1)


class _Bits:
    """Bits of the first bytes, highest first; zeros behind them."""

    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data.ljust(256, b"\0"), "big"), 2048

    def read(self, count: int) -> int:
        self._left -= count
        return self._value >> self._left & (1 << count) - 1


def _number(content: bytes, at: int, size: int) -> int:
    return int.from_bytes(content[at : at + size], "big")
