"""Tensors that still lie in their file: what they are, where, and their bytes when asked for.

Nothing here knows torch or numpy. Opening a file makes a `Source` of `StoredTensor`s; weights are
read only by `chunks()` and `read()`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

from imageprompt.core.errors import AdapterFileError

CHUNK = 1 << 20
MAX_NAME = 512
"""Characters of the longest tensor name that is read."""
ITEM_SIZES: Mapping[str, int] = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "C64": 8,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Stamp:
    """Tells whether a file is still the one that was opened."""

    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        return cls(status.st_size, status.st_mtime_ns, status.st_ino)


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor in a file, not read yet.

    `dtype` is a safetensors name (a key of `ITEM_SIZES`). A plain tensor is the row-major bytes
    [offset, offset + nbytes) of `file`; the others (compressed, strided, in several pieces) come
    through `slow`, a function from a chunk size to chunks. `storage` is equal for tensors that are
    the same bytes under several names.
    """

    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    storage: object
    stamp: Stamp | None = None
    slow: Callable[[int], Iterator[memoryview]] | None = field(
        default=None, compare=False, repr=False
    )

    @property
    def plain(self) -> bool:
        return self.slow is None

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * ITEM_SIZES[self.dtype]

    def chunks(self, size: int = CHUNK) -> Iterator[memoryview]:
        """Its bytes, row-major and little-endian, in pieces of at most `size`.

        Raises AdapterFileError when the file cannot be read, or changed since it was opened.
        """
        if self.slow is not None:
            return self.slow(size)
        return read_range(self.file, self.offset, self.nbytes, size, self.stamp)

    def read(self) -> bytearray:
        """All of its bytes, row-major and little-endian."""
        content = bytearray()
        for chunk in self.chunks():
            content += chunk
        return content


@dataclass(frozen=True)
class Source:
    """What a path turned out to hold.

    `files` were really opened; `container` says how the bytes are kept ("safetensors", "torch
    zip", "sharded safetensors", ...); `tensors` has flat dotted names, in file order; `notes` are
    for the user: what was left out, or is read the slow way.
    """

    path: Path
    files: tuple[Path, ...]
    container: str
    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_range(
    file: Path, offset: int, nbytes: int, size: int = CHUNK, stamp: Stamp | None = None
) -> Iterator[memoryview]:
    """Bytes [offset, offset + nbytes) of a file, by plain reads: no mapping that could fault."""
    try:
        with file.open("rb", buffering=0) as handle:
            if stamp is not None and Stamp.of(os.fstat(handle.fileno())) != stamp:
                raise _unreadable(file, "it changed after it was opened")
            handle.seek(offset)
            while nbytes > 0:
                chunk = handle.read(min(size, nbytes))
                if not chunk:
                    raise _unreadable(file, "it ended early: it was cut while it was read")
                yield memoryview(chunk)
                nbytes -= len(chunk)
    except OSError as error:
        raise _unreadable(file, error.strerror or str(error)) from None


def _unreadable(file: Path, why: str) -> AdapterFileError:
    return AdapterFileError(
        str(file), reason=why, hint="Try again when no other program writes the file."
    )
