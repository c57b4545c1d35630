"""NIfTI-1 volumes in HU: `.nii` and `.nii.gz`, read within limits and written."""

from __future__ import annotations

import gzip
import io
import math
import struct
import zlib
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from imageprompt.core.errors import PictureError
from imageprompt.workflows.restore_ct.notice import NOTICE

MAX_BYTES = 512 * 2**20
"""Of the unpacked file."""
MAX_SIDE = 4096
_HEADER = 348
_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4"}
_HIGHEST = -200.0
"""CT in HU shows air (−1000) beside what it shows; a volume without it is of another modality."""


@dataclass(frozen=True)
class NiftiVolume:
    """Slices from below [n, h, w] in HU: rows go to the back, columns to the patient's left."""

    hu: NDArray[np.float32]
    pixel_mm: float
    slice_mm: float


def is_nifti(content: bytes) -> bool:
    """Also packed by gzip."""
    return content[:2] == b"\x1f\x8b" or content[344:348] in (b"n+1\0", b"ni1\0")


def read_nifti(name: str, content: bytes) -> NiftiVolume:
    """A volume from the bytes of a file. Raises PictureError that says what it lacks."""
    if content[:2] == b"\x1f\x8b":
        content = _unpacked(name, content)
    if len(content) < _HEADER or content[344:348] != b"n+1\0":
        _refuse(name, "not a NIfTI-1 file", "Give a .nii or .nii.gz file.")
    order = "<" if struct.unpack_from("<i", content)[0] == _HEADER else ">"
    shape, kind, start = _layout(name, content, order)
    count = math.prod(shape)
    numbers = np.frombuffer(content, f"{order}{kind}", count, start).reshape(shape[::-1])
    slope, intercept = struct.unpack_from(f"{order}2f", content, 112)
    hu = numbers.astype(np.float32)
    if slope and math.isfinite(slope) and math.isfinite(intercept):
        with np.errstate(over="ignore", invalid="ignore"):
            hu = hu * np.float32(slope) + np.float32(intercept)
    if not np.isfinite(hu).all():
        _refuse(name, "with values that are not finite")
    if hu.min() > _HIGHEST:
        _refuse(
            name,
            f"without air: its lowest value is {hu.min():g}, so it is not CT in HU",
            "Give a CT in HU.",
        )
    steps = _steps(name, content, order)
    for axis, step in zip((2, 1, 0), (-steps[0], -steps[1], steps[2]), strict=True):
        if step < 0:  # NIfTI counts to the right, the front and up
            hu = np.flip(hu, axis)
    if abs(steps[0] / steps[1]) - 1 > 1e-3 or abs(steps[1] / steps[0]) - 1 > 1e-3:
        _refuse(name, "with pixels that are not square", "Resample it.")
    return NiftiVolume(np.ascontiguousarray(hu), abs(steps[0]), abs(steps[2]))


def nifti_bytes(hu: NDArray[np.floating], pixel_mm: float, slice_mm: float) -> bytes:
    """A packed NIfTI-1 file of slices [n, h, w] in HU, as 16-bit whole numbers."""
    header = bytearray(352)
    struct.pack_into("<i", header, 0, _HEADER)
    depth, rows, columns = hu.shape
    struct.pack_into("<8h", header, 40, 3, columns, rows, depth, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, 4, 16)
    struct.pack_into("<8f", header, 76, 1, pixel_mm, pixel_mm, slice_mm, 1, 1, 1, 1)
    struct.pack_into("<3f", header, 108, 352, 1, 0)
    header[123] = 2  # mm
    header[148 : 148 + 79] = NOTICE.encode("ascii")[:79]
    struct.pack_into("<2h", header, 252, 0, 1)  # by the sform
    struct.pack_into("<12f", header, 280, -pixel_mm, 0, 0, 0, 0, -pixel_mm, 0, 0, 0, 0, slice_mm, 0)
    header[344:348] = b"n+1\0"
    words = np.clip(np.rint(hu), -32768, 32767).astype("<i2")
    stream = io.BytesIO()
    with gzip.GzipFile(fileobj=stream, mode="wb", mtime=0) as packed:
        packed.write(header + words.tobytes())
    return stream.getvalue()


def _unpacked(name: str, content: bytes) -> bytes:
    unpacker = zlib.decompressobj(wbits=31)
    try:
        unpacked = unpacker.decompress(content, MAX_BYTES + 1)
    except zlib.error:
        _refuse(name, "a damaged gzip file", "Export it again.")
    if len(unpacked) > MAX_BYTES:
        _refuse(name, f"more than {MAX_BYTES} bytes unpacked", "Cut the volume.")
    return unpacked


def _layout(name: str, content: bytes, order: str) -> tuple[tuple[int, int, int], str, int]:
    """Columns, rows and slices, the type of the numbers, and where they begin."""
    dimensions = struct.unpack_from(f"{order}8h", content, 40)
    sides, others = dimensions[1:4], dimensions[4 : dimensions[0] + 1]
    if dimensions[0] not in (2, 3, 4, 5, 6, 7) or any(one != 1 for one in others):
        _refuse(name, "not one volume", "Give one volume of three dimensions.")
    if dimensions[0] == 2:
        sides = (*sides[:2], 1)
    if not all(0 < side <= MAX_SIDE for side in sides):
        _refuse(name, f"{' x '.join(map(str, sides))} voxels; the limit is {MAX_SIDE} a side")
    kind = _TYPES.get(struct.unpack_from(f"{order}h", content, 70)[0])
    if kind is None:
        _refuse(name, "with numbers of a kind that CT has not", "Store it as 16-bit numbers.")
    start = struct.unpack_from(f"{order}f", content, 108)[0]
    start = int(start) if math.isfinite(start) and start >= _HEADER else 352
    if start + math.prod(sides) * np.dtype(kind).itemsize > len(content):
        _refuse(name, "with fewer voxels than it says", "Export it again.")
    return sides, kind, start


def _steps(name: str, content: bytes, order: str) -> tuple[float, float, float]:
    """Mm from voxel to voxel along columns, rows and slices; negative: to the left, the back or
    down."""
    sizes = struct.unpack_from(f"{order}3f", content, 80)
    quaternion, code = struct.unpack_from(f"{order}2h", content, 252)
    if code > 0:
        matrix = np.array(struct.unpack_from(f"{order}12f", content, 280)).reshape(3, 4)[:, :3]
    else:
        turned = _rotation(content, order) if quaternion > 0 else np.eye(3)
        matrix = turned * np.array(sizes)
    steps = np.diagonal(matrix)
    if not np.isfinite(matrix).all() or not steps.all():
        _refuse(name, "without a voxel size")
    if np.abs(matrix - np.diag(steps)).max() > 0.02 * np.abs(steps).max():
        _refuse(name, "with slices that are not axial", "Resample it to axial slices.")
    x, y, z = map(float, steps)
    return x, y, z


def _rotation(content: bytes, order: str) -> NDArray[np.float64]:
    """The matrix of the header's quaternion; the third column turned by qfac."""
    b, c, d = struct.unpack_from(f"{order}3f", content, 256)
    a = math.sqrt(max(1 - b * b - c * c - d * d, 0))
    matrix = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    if struct.unpack_from(f"{order}f", content, 76)[0] < 0:
        matrix[:, 2] *= -1
    return matrix


def _refuse(name: str, reason: str, hint: str = "Give a CT volume in HU.") -> NoReturn:
    raise PictureError(f"scan {name!r}", reason=reason, hint=hint) from None
