"""One DICOM slice: CT, not compressed, with a rescale to HU.

Only the elements that are needed are looked at, all others are stepped over. Names and numbers of
the patient are never read.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from imageprompt.core.errors import PictureError
from imageprompt.core.untrusted import Budget, LimitError

MAX_BYTES = 64 * 2**20
MAX_SIDE = 4096
_BUDGET = 200_000  # elements
_DEPTH = 16  # of sequences
_START = 132
_IMPLICIT, _EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
_LOSSY = {
    *(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 53, 55, 81, 91, 93, 203)),
    *(f"1.2.840.10008.1.2.4.{n}" for n in range(100, 109)),
}
"""Transfer syntaxes that may lose something: JPEG, JPEG-LS near-lossless, JPEG 2000, MPEG."""
_LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
"""Value representations whose length has four bytes."""
_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_SYNTAX, _PIXELS = 0x00020010, 0x7FE00010
_STEEPEST, _FARTHEST = 1e3, 1e6  # slope and intercept to HU
_UNPACK = "Unpack it first, for example with `gdcmconv --raw IN OUT`."

_TEXTS = {
    0x00080060: "modality",
    0x00180050: "thickness",
    0x0020000E: "series",
    0x00200032: "position",
    0x00200037: "orientation",
    0x00280004: "photometric",
    0x00280008: "frames",
    0x00280030: "spacing",
    0x00281052: "intercept",
    0x00281053: "slope",
    0x00281054: "rescale_type",
    0x00282110: "lossy",
}
_NUMBERS = {
    0x00280002: "samples",
    0x00280010: "rows",
    0x00280011: "columns",
    0x00280100: "allocated",
    0x00280101: "stored",
    0x00280102: "high_bit",
    0x00280103: "signed",
}


@dataclass(frozen=True)
class DicomSlice:
    """A slice in HU [h, w], and where it lies: position along the normal of the slices in mm."""

    hu: NDArray[np.float32]
    pixel_mm: float
    thickness_mm: float | None
    position_mm: float
    orientation: tuple[float, ...]
    series: str


def is_dicom(content: bytes) -> bool:
    return content[128:_START] == b"DICM"


def read_dicom(name: str, content: bytes) -> DicomSlice:
    """A slice from the bytes of a file. Raises PictureError that says what it lacks."""
    budget = Budget(nbytes=MAX_BYTES, items=_BUDGET, depth=_DEPTH)
    try:
        return _Reader(name, content, budget).slice()
    except LimitError as error:
        _refuse(name, str(error))
    except (struct.error, ValueError, IndexError, KeyError):
        _refuse(name, "a damaged DICOM file", "Export it again.")


class _Reader:
    def __init__(self, name: str, content: bytes, budget: Budget) -> None:
        self.name, self.content, self.budget = name, content, budget
        self.found: dict[str, str | int] = {}
        self.pixels: tuple[int, int] | None = None

    def slice(self) -> DicomSlice:
        self._check_syntax()
        self._check_kind()
        rows, columns = self._number("rows"), self._number("columns")
        if not (0 < rows <= MAX_SIDE and 0 < columns <= MAX_SIDE):
            _refuse(self.name, f"{columns} x {rows} pixels; the limit is {MAX_SIDE} x {MAX_SIDE}")
        slope, intercept = self._rescale()
        stored = self._stored(rows * columns).reshape(rows, columns)
        spacing = self._floats("spacing", 2)
        if not spacing or min(spacing) <= 0 or abs(spacing[0] / spacing[1] - 1) > 1e-3:
            _refuse(self.name, "without a pixel spacing, or with pixels that are not square")
        thickness = self._floats("thickness", 1)
        orientation = self._floats("orientation", 6) or (1.0, 0, 0, 0, 1.0, 0)
        normal = np.cross(orientation[:3], orientation[3:])
        position = self._floats("position", 3) or (0.0, 0.0, 0.0)
        return DicomSlice(
            stored.astype(np.float32) * np.float32(slope) + np.float32(intercept),
            spacing[0],
            thickness[0] if thickness else None,
            float(np.dot(normal, position)),
            orientation,
            str(self.found.get("series", "")),
        )

    # ── what is refused ─────────────────────────────────────────────────────────────────────────

    def _check_syntax(self) -> None:
        syntax, start = "", _START
        for tag, _, at, length in self._elements(_START, len(self.content), explicit=True):
            if tag >> 16 != 2:
                break
            if tag == _SYNTAX:
                syntax = self._text(at, length)
            start = at + length
        if syntax in _LOSSY:
            _refuse(
                self.name,
                "with lossy compression, which has changed its values",
                "Give the original.",
            )
        if syntax not in (_IMPLICIT, _EXPLICIT):
            _refuse(self.name, f"stored as {syntax[:64] or 'nothing known'}, not plainly", _UNPACK)
        self._collect(start, syntax == _EXPLICIT)

    def _check_kind(self) -> None:
        found = self.found
        if found.get("modality") != "CT":
            _refuse(
                self.name,
                f"of modality {str(found.get('modality', 'unknown'))[:16]}, not CT",
                "Give a CT.",
            )
        if str(found.get("lossy", "00")) == "01":
            _refuse(
                self.name,
                "with lossy compression in its past, which has changed its values",
                "Give the original.",
            )
        if found.get("samples", 1) != 1 or found.get("photometric") != "MONOCHROME2":
            _refuse(self.name, "with colours, or inverted", "Give an axial slice in HU.")
        if int(found.get("frames", 1)) != 1:
            _refuse(self.name, "with several frames", "Export one file for each slice.")

    def _rescale(self) -> tuple[float, float]:
        slope, intercept = self._floats("slope", 1), self._floats("intercept", 1)
        if not slope or not intercept or not slope[0]:
            _refuse(
                self.name,
                "without rescale slope and intercept: its numbers are no HU",
                "Export it from the scanner's own data.",
            )
        if abs(slope[0]) > _STEEPEST or abs(intercept[0]) > _FARTHEST:
            _refuse(self.name, "with a rescale that leads out of every HU", "Export it again.")
        if self.found.get("rescale_type", "HU") not in ("HU", "US", ""):
            _refuse(self.name, f"in {str(self.found['rescale_type'])[:16]}, not in HU")
        return slope[0], intercept[0]

    def _stored(self, count: int) -> NDArray[np.int32]:
        """The stored numbers, [count]; the bits that hold no number are left out."""
        bits, high = self._number("stored"), self._number("high_bit")
        if self._number("allocated") != 16 or not 0 < bits <= 16 or high != bits - 1:
            _refuse(self.name, "with pixels that have not 16 bits each")
        at, length = self.pixels or (0, 0)
        if length < 2 * count or at + length > len(self.content):
            _refuse(self.name, "with fewer pixels than it says", "Export it again.")
        words: NDArray[np.uint16] = np.frombuffer(self.content, "<u2", count, at)
        numbers: NDArray[np.int32] = words.astype(np.int32) & (2**bits - 1)
        if self._number("signed"):
            numbers -= (numbers >> (bits - 1)) << bits
        return numbers

    # ── elements ────────────────────────────────────────────────────────────────────────────────

    def _collect(self, start: int, explicit: bool) -> None:
        for tag, _, at, length in self._elements(start, len(self.content), explicit):
            if tag in _TEXTS:
                self.found[_TEXTS[tag]] = self._text(at, length)
            elif tag in _NUMBERS:
                self.found[_NUMBERS[tag]] = struct.unpack_from("<H", self.content, at)[0]
            elif tag == _PIXELS:
                self.pixels = at, length
                return

    def _elements(
        self, start: int, end: int, explicit: bool, depth: int = 0
    ) -> Iterator[tuple[int, bytes, int, int]]:
        """Tag, representation, position and length of each element from `start` to `end`, or to
        the end of an item; what is of undefined length is stepped over."""
        self.budget.check_depth(depth)
        at = start
        while at + 8 <= end:
            self.budget.add()
            tag, kind, at, length = self._head(at, explicit)
            if tag == _ITEM_END:
                yield tag, kind, at, 0
                return
            if length == _UNDEFINED:
                at = self._after_items(at, explicit, depth + 1)
                continue
            if at + length > len(self.content):
                raise ValueError("an element ends behind the file")
            yield tag, kind, at, length
            at += length

    def _head(self, at: int, explicit: bool) -> tuple[int, bytes, int, int]:
        group, element = struct.unpack_from("<HH", self.content, at)
        tag = group << 16 | element
        if not explicit or group == 0xFFFE:
            (length,) = struct.unpack_from("<I", self.content, at + 4)
            return tag, b"", at + 8, length
        kind = self.content[at + 4 : at + 6]
        if kind in _LONG:
            (length,) = struct.unpack_from("<I", self.content, at + 8)
            return tag, kind, at + 12, length
        (length,) = struct.unpack_from("<H", self.content, at + 6)
        return tag, kind, at + 8, length

    def _after_items(self, at: int, explicit: bool, depth: int) -> int:
        """Where a sequence of undefined length ends, whose items begin at `at`."""
        while True:
            self.budget.add()
            tag, _, at, length = self._head(at, explicit)
            if tag == _SEQUENCE_END:
                return at
            if tag != _ITEM:
                raise ValueError("no item")
            if length != _UNDEFINED:
                at += length
                continue
            inside = list(self._elements(at, len(self.content), explicit, depth))
            if not inside or inside[-1][0] != _ITEM_END:
                raise ValueError("an item without an end")
            at = inside[-1][2]

    def _text(self, at: int, length: int) -> str:
        return self.content[at : at + min(length, 256)].decode("latin-1").strip(" \0")

    def _number(self, name: str) -> int:
        return int(self.found[name])

    def _floats(self, name: str, count: int) -> tuple[float, ...]:
        """So many finite numbers, or none."""
        try:
            numbers = tuple(float(one) for one in str(self.found.get(name, "")).split("\\"))
        except ValueError:
            return ()
        fits = len(numbers) == count and all(map(math.isfinite, numbers))
        return numbers if fits else ()


def _refuse(name: str, reason: str, hint: str = "Give a CT slice in HU.") -> NoReturn:
    raise PictureError(f"scan {name!r}", reason=reason, hint=hint) from None
