"""Checks on the bytes of stored weights, without torch: finite, constant, equal, hashed.

A float whose exponent bits are all ones is NaN or infinite. Searching for such bytes takes a tenth
of the time of loading a numerical library.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from imageprompt.checkpoint.read.stored_tensor import (
    CHUNK,
    ITEM_SIZES,
    StoredTensor,
    TensorBytes,
    read_range,
)

END = 4096  # bytes at each end of a tensor that the quick hash reads
QUICK, FULL = "sha256-ends", "sha256"  # names of the two hashes


@dataclass(frozen=True)
class _Exponents:
    """How a float type stores an exponent of all ones: possible top bytes, least next byte."""

    tops: tuple[int, ...]
    next_at_least: int = 0


@dataclass(frozen=True)
class TensorLimit:
    """The largest size of each dimension, the fewest dimensions, the most bytes, and the dtypes."""

    largest: tuple[int, ...]
    min_ndim: int
    nbytes: int
    dtypes: tuple[str, ...] = ("F32", "F16", "BF16")

    def allows(self, tensor: TensorBytes) -> bool:
        return (
            tensor.dtype in self.dtypes
            and self.min_ndim <= len(tensor.shape) <= len(self.largest)
            and all(
                1 <= size <= high for size, high in zip(tensor.shape, self.largest, strict=False)
            )
            and tensor.nbytes <= self.nbytes
        )

    def __str__(self) -> str:
        sizes = ", ".join(f"1..{high}" if high > 1 else "1" for high in self.largest)
        return f"at most [{sizes}] of {' or '.join(self.dtypes)}, {self.nbytes / 2**20:g} MiB"


def beyond_limits(
    tensors: Mapping[str, TensorBytes], limits: Mapping[str, TensorLimit], whole: str
) -> str:
    """Why a file of these tensors is not read as a `whole` ("a style"); "" if nothing is wrong."""
    for name, tensor in tensors.items():
        limit = limits.get(name)
        if limit is None or not limit.allows(tensor):
            rule = limit or f"not part of {whole}"
            return f"its tensor {name!r:.60} is {list(tensor.shape)}, {tensor.dtype}: {rule}"
    return ""


TOKENS = TensorLimit((1000, 4096, 16_384), 3, 64 * 2**20)
"""Of image tokens: prompts, tokens, width."""


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


def not_computable(dtypes: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Of tensors by name and safetensors dtype: those of whole numbers, and those of float8.

    Whole numbers cannot be loaded, as their scales are missing; float8 is loaded as float16, which
    holds each of its numbers.
    """
    whole = [name for name, dtype in dtypes.items() if dtype not in FLOATS]
    float8 = [name for name, dtype in dtypes.items() if dtype in FLOATS and ITEM_SIZES[dtype] == 1]
    return whole, float8


def finite(tensor: TensorBytes) -> bool:
    """True if no value is NaN or infinite; integers are always finite."""
    return all(_finite(tensor.dtype, piece) for piece in pieces(tensor))


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


def not_finite_count(tensor: TensorBytes) -> int:
    """How many values are NaN or infinite; slow, for tensors that have some."""
    special, size = _SPECIAL.get(tensor.dtype), ITEM_SIZES[tensor.dtype]
    if special is None:
        return 0
    count = 0
    for piece in pieces(tensor):
        tops = piece[size - 1 :: size]
        if not special.next_at_least:
            count += sum(tops.count(top) for top in special.tops)
            continue
        count += sum(
            top in special.tops and second >= special.next_at_least
            for top, second in zip(tops, piece[size - 2 :: size], strict=True)
        )
    return count


def constant(tensor: TensorBytes) -> bool:
    """True if there are several values, all the same; stops at the first that differs."""
    size = ITEM_SIZES[tensor.dtype]
    if tensor.nbytes <= size:
        return False
    first = b""
    for piece in pieces(tensor):
        first = first or piece[:size]
        if piece != first * (len(piece) // size):
            return False
    return True


def same_bytes(a: TensorBytes, b: TensorBytes) -> bool:
    """True if dtype, shape and every bit are equal."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    return all(x == y for x, y in zip(pieces(a), pieces(b), strict=True))


def pieces(tensor: TensorBytes) -> Iterator[bytes]:
    """The bytes in pieces of CHUNK, however they arrive: no item is split over two pieces."""
    pending, left = bytearray(), tensor.nbytes
    for chunk in tensor.chunks():
        left -= len(chunk)
        if not pending and (len(chunk) == CHUNK or not left):
            yield _without_copy(chunk)
            continue
        pending += chunk
        while len(pending) >= CHUNK:
            yield bytes(pending[:CHUNK])
            del pending[:CHUNK]
    if pending:
        yield bytes(pending)


def _without_copy(chunk: memoryview) -> bytes:
    """The bytes object under a full view of it: a copy would cost as much as reading did."""
    whole = chunk.obj
    return whole if type(whole) is bytes and len(whole) == len(chunk) else bytes(chunk)


def full_hash(tensors: Mapping[str, TensorBytes]) -> str:
    """SHA-256 over names, dtypes, shapes and every byte, sorted by name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        _add_header(digest, name, tensors[name])
        for chunk in tensors[name].chunks():
            digest.update(chunk)
    return digest.hexdigest()


def quick_hash(tensors: Mapping[str, StoredTensor]) -> str:
    """SHA-256 over names, dtypes, shapes and both ends of every tensor (4096 bytes each).

    Distinguishes trained weights, but does not prove that every byte is the same.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        _add_header(digest, name, tensors[name])
        digest.update(_ends(tensors[name]))
    return digest.hexdigest()


def _add_header(digest: hashlib._Hash, name: str, tensor: TensorBytes) -> None:
    """Add what both hashes cover of a tensor beside its bytes."""
    digest.update(f"{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())


def _ends(tensor: StoredTensor) -> bytes:
    """The first and the last 4096 bytes; all bytes of a tensor that has no more."""
    if tensor.plain and tensor.nbytes > 2 * END:
        starts = (tensor.offset, tensor.offset + tensor.nbytes - END)
        ends = (read_range(tensor.file, start, END, stamp=tensor.stamp) for start in starts)
        return b"".join(bytes(chunk) for end in ends for chunk in end)
    content = bytearray()
    for chunk in tensor.chunks():
        content += chunk
        content[END:-END] = b""
    return bytes(content)
