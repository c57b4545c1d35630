"""What stored weights hold, told from their bytes: finite, constant, equal, hashed. No torch.

A float whose exponent is all ones is NaN or infinite; looking for such bytes takes a tenth of the
time that loading a numerical library would.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from imageprompt.checkpoint.read.stored_tensor import CHUNK, ITEM_SIZES, StoredTensor, read_range

END = 4096  # bytes of either end of a tensor that the quick hash reads
QUICK, FULL = "sha256-ends", "sha256"  # what the two hashes are called


class Weights(Protocol):
    """A tensor whose bytes can be had, whether it lies in a file or is made on the way."""

    @property
    def dtype(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def nbytes(self) -> int: ...

    def chunks(self, size: int = CHUNK) -> Iterator[memoryview]:
        """Row-major, little-endian, in pieces of at most `size`."""


@dataclass(frozen=True)
class _Exponents:
    """How a float type writes an exponent of all ones: its top byte, and what the next must be."""

    tops: tuple[int, ...]
    next_at_least: int = 0


_HALF = (0x7C, 0x7D, 0x7E, 0x7F, 0xFC, 0xFD, 0xFE, 0xFF)
_SPECIAL = {
    "F64": _Exponents((0x7F, 0xFF), 0xF0),
    "F32": _Exponents((0x7F, 0xFF), 0x80),
    "BF16": _Exponents((0x7F, 0xFF), 0x80),
    "F16": _Exponents(_HALF),
    "F8_E5M2": _Exponents(_HALF),
    "F8_E4M3": _Exponents((0x7F, 0xFF)),
}
FLOATS = frozenset(_SPECIAL)


def finite(weights: Weights) -> bool:
    """Is none of them NaN or infinite? Whole numbers always are finite."""
    return all(_finite(weights.dtype, piece) for piece in pieces(weights))


def _finite(dtype: str, piece: bytes) -> bool:
    special, size = _SPECIAL.get(dtype), ITEM_SIZES[dtype]
    if special is None:
        return True
    tops = piece[size - 1 :: size]
    suspects = [top for top in special.tops if top in tops]
    if not suspects or not special.next_at_least:
        return not suspects
    below = piece[size - 2 :: size]
    return not any(
        top in special.tops and second >= special.next_at_least
        for top, second in zip(tops, below, strict=True)
    )


def constant(weights: Weights) -> bool:
    """Are there several values, and all the same? Stops at the first that differs."""
    size = ITEM_SIZES[weights.dtype]
    if weights.nbytes <= size:
        return False
    first = b""
    for piece in pieces(weights):
        first = first or piece[:size]
        if piece != first * (len(piece) // size):
            return False
    return True


def same_bytes(a: Weights, b: Weights) -> bool:
    """Equal in dtype, shape and every bit."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    return all(x == y for x, y in zip(pieces(a), pieces(b), strict=True))


def pieces(weights: Weights) -> Iterator[bytes]:
    """Its bytes in pieces of CHUNK, however they arrive: no item is ever cut in two."""
    waiting, left = bytearray(), weights.nbytes
    for chunk in weights.chunks():
        left -= len(chunk)
        if not waiting and (len(chunk) == CHUNK or not left):
            yield _as_read(chunk)
            continue
        waiting += chunk
        while len(waiting) >= CHUNK:
            yield bytes(waiting[:CHUNK])
            del waiting[:CHUNK]
    if waiting:
        yield bytes(waiting)


def _as_read(chunk: memoryview) -> bytes:
    """The bytes under a view of all of them: a copy would cost as much as reading them did."""
    whole = chunk.obj
    return whole if type(whole) is bytes and len(whole) == len(chunk) else bytes(chunk)


def full_hash(tensors: Mapping[str, Weights]) -> str:
    """SHA-256 over names, dtypes, shapes and every byte, in order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        _add_header(digest, name, tensors[name])
        for chunk in tensors[name].chunks():
            digest.update(chunk)
    return digest.hexdigest()


def quick_hash(tensors: Mapping[str, StoredTensor]) -> str:
    """SHA-256 over names, dtypes, shapes and both ends of every tensor (4096 bytes each).

    Tells trained weights apart; it is no proof that every byte is the same.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        _add_header(digest, name, tensors[name])
        digest.update(_ends(tensors[name]))
    return digest.hexdigest()


def _add_header(digest: hashlib._Hash, name: str, weights: Weights) -> None:
    """What both hashes read of a tensor before its bytes."""
    digest.update(f"{name}\0{weights.dtype}\0{list(weights.shape)}\0".encode())


def _ends(tensor: StoredTensor) -> bytes:
    """The first and the last 4096 bytes; all of a tensor that has no more than that."""
    if tensor.plain and tensor.nbytes > 2 * END:
        starts = (tensor.offset, tensor.offset + tensor.nbytes - END)
        ends = (read_range(tensor.file, start, END, stamp=tensor.stamp) for start in starts)
        return b"".join(bytes(chunk) for end in ends for chunk in end)
    content = bytearray()
    for chunk in tensor.chunks():
        content += chunk
        content[END:-END] = b""
    return bytes(content)
