"""What decoding a JPEG, WebP, AVIF or HEIC file may cost, checked before a decoder sees it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import BinaryIO, Literal

from imageprompt.core.untrusted import Budget, LimitError

MAX_DECODED_BYTES = 256 * 2**20
"""What pixels take in memory, with the coefficients of a JPEG in several scans and with the file
and the canvases of a WebP."""
MAX_SCANS = 100
"""Of a JPEG: a progressive one has about 10."""
MAX_SCANNED_PIXELS = 640_000_000
"""Scans times pixels of a JPEG: 10 scans of the largest. Each passes over the whole picture and
takes up to 3 ns a pixel."""
MAX_SEGMENTS = 4000
MAX_NOTE_BYTES = 16 * 2**20
"""Of a JPEG's profiles and notes: a depth map or a colour profile takes a few million."""
MAX_WHOLE_BYTES = 32 * 2**20
"""Of WebP, AVIF and HEIC files, which are read whole and copied by their decoders."""
MAX_EXIF_BYTES = 2**20
"""What the entries of one EXIF table may claim together: they can all claim the same bytes."""

_BLOCK = 64 * 2**10
_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")  # not an escaped FF, fill or restart marker
_SOI, _EOI, _SOS, _TEM = 0xD8, 0xD9, 0xDA, 0x01
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = {0xC2, 0xC6}
_ARITHMETIC = {0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}
_NOTES = {*range(0xE0, 0xF0), 0xFE}

_MAX_ENTRIES = 100_000  # of the tables of a file; each counts its own in 16 bits
_TIFF = re.compile(rb"(II|MM)(\0[*+]|[*+]\0)")
_ITEM_SIZES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}  # others: 1


def check(stream: BinaryIO, head: bytes, *, halved_above: int | None) -> None:
    """Raises LimitError. A JPEG of more than `halved_above` pixels will be decoded at half its
    size; 0 if none is, None if nothing is decoded."""
    if head.startswith(b"\xff\xd8"):
        _check_jpeg(stream, halved_above)
        return
    size = stream.seek(0, os.SEEK_END)
    width, height = _webp_canvas(head) if head.startswith(b"RIFF") else (0, 0)
    needed = 16 * width * height + 2 * size
    if size > MAX_WHOLE_BYTES or needed > MAX_DECODED_BYTES:
        shown = f"{width}x{height} pixels" if width else "what it holds"
        raise LimitError(f"decoding {shown}, in {size / 2**20:.0f} MiB, takes too much memory")
    if not width:
        stream.seek(0)
        content = stream.read()
        budget = Budget(items=_MAX_ENTRIES)
        for match in _TIFF.finditer(content):
            budget.add()
            _check_table(memoryview(content)[match.start() :], budget)
        if b"av01" in content:
            _check_avif(content)


def _check_avif(content: bytes) -> None:
    from imageprompt.encoding.images.avif_frames import largest_frame

    if (pixels := largest_frame(content)) > MAX_DECODED_BYTES // 16:
        raise LimitError(f"it holds a frame of {pixels / 10**6:.0f} million pixels")


# ── JPEG ────────────────────────────────────────────────────────────────────────────────────────


def _check_jpeg(stream: BinaryIO, halved_above: int | None) -> None:
    """Follows the markers as libjpeg does, without decoding; up to the pixels if that is enough."""
    found, exif = _Jpeg(), bytearray()
    for count, (marker, length) in enumerate(_segments(stream)):
        if count >= MAX_SEGMENTS:
            raise LimitError(f"it has more than {MAX_SEGMENTS} segments")
        if marker == _SOS and halved_above is None:
            break
        if marker == _SOS:
            found.add_scan(stream.read(1))
        elif marker in _FRAMES:
            found.add_frame(marker, stream.read(length))
        elif marker in _NOTES:
            found.add_note(length)
            start = stream.read(min(length, 6))
            rest = length - len(start)
            if start == b"Exif\0\0":
                exif += stream.read(rest)
                if len(exif) > MAX_EXIF_BYTES:  # Pillow joins the segments one by one
                    raise LimitError(f"it has more than {MAX_EXIF_BYTES} bytes of EXIF data")
            elif start.startswith(b"MPF\0"):
                check_exif(start[4:] + stream.read(rest))
    check_exif(bytes(exif))
    found.check_memory(halved_above or 0)


@dataclass
class _Jpeg:
    """What the segments of a JPEG have announced so far."""

    pixels: int = 0
    components: int = 0
    coefficients: int = 0
    """Bytes that they take if more than one scan describes them."""
    kept: bool = False
    scans: int = 0
    noted: int = 0

    def add_frame(self, marker: int, content: bytes) -> None:
        if marker in _ARITHMETIC:
            raise LimitError("it uses arithmetic coding, which browsers do not read either")
        if len(content) < 6:
            return
        height, width = (int.from_bytes(content[at : at + 2], "big") for at in (1, 3))
        factors = [(f >> 4 or 1, f & 15 or 1) for f in content[7 : 6 + 3 * content[5] : 3]]
        largest = [max((f[i] for f in factors), default=1) for i in (0, 1)]
        shares = sum(h * v for h, v in factors) / prod(largest)
        self.pixels, self.components = width * height, content[5]
        self.coefficients = int(2 * self.pixels * shares)
        self.kept = marker in _PROGRESSIVE

    def add_scan(self, components: bytes) -> None:
        self.scans += 1
        self.kept = self.kept or self.scans > 1 or components != bytes([self.components])
        scanned = self.scans * self.pixels
        if self.scans > MAX_SCANS or (self.scans > 1 and scanned > MAX_SCANNED_PIXELS):
            raise LimitError(f"it has {self.scans} or more scans of {self.pixels} pixels each")

    def add_note(self, length: int) -> None:
        self.noted += length
        if self.noted > MAX_NOTE_BYTES:
            raise LimitError(f"it has more than {MAX_NOTE_BYTES // 2**20} MiB of profiles")

    def check_memory(self, halved_above: int) -> None:
        decoded = self.pixels if 0 < halved_above < self.pixels else 4 * self.pixels
        needed = decoded + self.coefficients
        if self.kept and needed > MAX_DECODED_BYTES:
            raise LimitError(
                f"decoding its {self.pixels / 10**6:.0f} million pixels, stored in several scans, "
                f"would take {needed >> 20} MiB, more than {MAX_DECODED_BYTES >> 20}"
            )


def _segments(stream: BinaryIO) -> Iterator[tuple[int, int]]:
    """Marker and length of each segment of the first picture, the stream standing at its content.

    Pixels after a start of scan are passed over. Ends at the end of the picture or of the file.
    """
    position = 2
    while (found := _next_marker(stream, position)) is not None:
        marker, position = found
        if marker == _EOI:
            return
        if marker in (_SOI, _TEM):
            yield marker, 0
            continue
        length = int.from_bytes(stream.read(2), "big") - 2
        if length < 0:
            return  # libjpeg stops here too
        yield marker, length
        position += 2 + length


def _next_marker(stream: BinaryIO, position: int) -> tuple[int, int] | None:
    """The next marker, and the position behind it, where the stream then stands."""
    stream.seek(position)
    while len(block := stream.read(_BLOCK)) > 1:
        if match := _MARKER.search(block):
            position += match.end()
            stream.seek(position)
            return match[1][0], position
        position += len(block) - 1  # the last byte may begin a marker
        stream.seek(position)
    return None


# ── EXIF, WebP ──────────────────────────────────────────────────────────────────────────────────


def check_exif(content: bytes) -> None:
    """Raises LimitError if the first table of these EXIF data claims more than MAX_EXIF_BYTES."""
    content = content.removeprefix(b"Exif\0\0")
    if _TIFF.match(content):
        _check_table(memoryview(content), Budget(items=_MAX_ENTRIES))


def _check_table(content: memoryview, budget: Budget) -> None:
    order: Literal["little", "big"] = "little" if bytes(content[:1]) == b"I" else "big"

    def number(at: int, size: int) -> int:
        return int.from_bytes(content[at : at + size], order)

    large = b"+" in bytes(content[2:4])  # of a kind for files above 4 GB
    wide, many, each = (8, 8, 20) if large else (4, 2, 12)
    start, claimed = number(wide, wide), 0
    first = start + many
    entries = range(first, min(first + each * number(start, many), len(content)), each)
    budget.add(len(entries))
    for entry in entries:
        size = number(entry + 4, wide) * _ITEM_SIZES.get(number(entry + 2, 2), 1)
        claimed += min(size, len(content))
    if claimed > MAX_EXIF_BYTES:
        raise LimitError(f"its EXIF table claims {claimed} bytes, more than {MAX_EXIF_BYTES}")


def _webp_canvas(head: bytes) -> tuple[int, int]:
    """Width and height in the first chunk, whose kind says where they are; 0, 0 for no WebP."""
    kind = head[12:16]
    if kind == b"VP8X":
        width, height = (1 + int.from_bytes(head[at : at + 3], "little") for at in (24, 27))
    elif kind == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    elif kind == b"VP8 ":
        width, height = (int.from_bytes(head[at : at + 2], "little") & 0x3FFF for at in (26, 28))
    else:
        width, height = 0, 0
    return width, height
