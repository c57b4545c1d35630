"""Tensors that are still in their file: what they are, where they lie, and how to read their bytes.

Nothing here uses torch or numpy. Opening a file gives a `TensorSource` of `StoredTensor`s; weights
are read only by `chunks()` and `read()`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from imageprompt.core.errors import AdapterFileError
from imageprompt.core.hub import PARTS, part_of
from imageprompt.core.untrusted import open_regular

if TYPE_CHECKING:
    from imageprompt.checkpoint.read.light import LightForm

T = TypeVar("T")

CHUNK = 1 << 20
MAX_DIMENSIONS = 32
MAX_NAME = 512
"""Length in characters of the longest tensor name that is accepted."""
ITEM_SIZES: Mapping[str, int] = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "C64": 8,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
"""safetensors' name of a dtype -> bytes per element."""
_MAX_ELEMENTS = 2**60
TORCH_DTYPES: Mapping[str, str] = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "complex64": "C64",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
"""torch's name of a dtype -> safetensors' name."""
_TORCH_NAMES = {stored: torch for torch, stored in TORCH_DTYPES.items()}


def is_shape(sizes: Collection[object]) -> bool:
    """Are these the sizes of a tensor: a few whole numbers, and not many elements even if none of
    the sizes were 0? (numpy and torch multiply them. JSON's true and 1.0 are not whole numbers.)"""
    return (
        len(sizes) <= MAX_DIMENSIONS
        and all(type(n) is int and 0 <= n < _MAX_ELEMENTS for n in sizes)
        and prod(n or 1 for n in sizes if isinstance(n, int)) < _MAX_ELEMENTS
    )


def torch_dtype_name(dtype: str) -> str:
    """torch's name of a safetensors dtype: "F16" is "float16"."""
    return _TORCH_NAMES.get(dtype, dtype)


class TensorBytes(Protocol):
    """A tensor whose bytes can be read, whether it is stored in a file or computed on the fly."""

    @property
    def dtype(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def nbytes(self) -> int: ...

    def chunks(self, size: int = CHUNK) -> Iterator[memoryview]:
        """Row-major, little-endian, in pieces of at most `size` bytes."""


def dtype_names(tensors: Iterable[TensorBytes]) -> tuple[str, ...]:
    """The dtypes of these tensors by torch's names, each once: ("float16", "float32")."""
    return tuple(sorted({torch_dtype_name(tensor.dtype) for tensor in tensors}))


@dataclass(frozen=True, slots=True)
class FileStamp:
    """Identifies one state of a file, to notice when it changes after it was opened.

    `ctime_ns`, the time of its last change of any kind, cannot be set back, as `mtime_ns` can.
    """

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileStamp:
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a file, not read yet.

    `dtype` is a safetensors name (a key of `ITEM_SIZES`). A plain tensor is the row-major bytes
    [offset, offset + nbytes) of `file`; the others (compressed, strided, in several pieces) are
    read by `read_slowly`, a function from a chunk size to chunks. `storage` is equal for tensors
    that are the same bytes under several names.
    """

    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    storage: object
    stamp: FileStamp | None = None
    read_slowly: Callable[[int], Iterator[memoryview]] | None = field(
        default=None, compare=False, repr=False
    )

    @property
    def plain(self) -> bool:
        return self.read_slowly is None

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * ITEM_SIZES[self.dtype]

    def chunks(self, size: int = CHUNK) -> Iterator[memoryview]:
        """The bytes, row-major and little-endian, in pieces of at most `size`.

        Raises AdapterFileError if the file cannot be read or has changed since it was opened.
        """
        if self.read_slowly is not None:
            return self.read_slowly(size)
        return read_range(self.file, self.offset, self.nbytes, size, self.stamp)

    def read(self) -> bytearray:
        """All bytes, row-major and little-endian."""
        content = bytearray()
        for chunk in self.chunks():
            content += chunk
        return content


@dataclass(frozen=True)
class TensorSource:
    """The tensors that a file or folder holds.

    `files` are those that were really opened; `container` says how the bytes are stored
    ("safetensors", "torch zip", "sharded safetensors", ...); `tensors` maps flat dotted names, in
    file order; `notes` are for the user: what was skipped, chosen among several, or reads slowly.
    """

    path: Path
    files: tuple[Path, ...]
    container: str
    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    light: LightForm | None = None
    """For a light adapter that has not met its base yet: what the file itself holds."""

    @property
    def holds_pair(self) -> bool:
        """Are these a content and a style adapter, each below its own prefix?"""
        return bool(self.tensors) and {n.partition(".")[0] for n in self.tensors} == {*PARTS}

    def part(self, name: str) -> TensorSource:
        """One adapter of a pair, as a file of its own would hold it."""
        path = Path(part_of(self.path, name))
        tensors, metadata = _below(name, self.tensors), _below(name, self.metadata)
        return replace(self, path=path, tensors=tensors, metadata=metadata)


def _below(part: str, values: Mapping[str, T]) -> dict[str, T]:
    start = f"{part}."
    return {k.removeprefix(start): value for k, value in values.items() if k.startswith(start)}


def read_range(
    file: Path, offset: int, nbytes: int, size: int = CHUNK, stamp: FileStamp | None = None
) -> Iterator[memoryview]:
    """Bytes [offset, offset + nbytes) of a file, by plain reads: a memory map could fault."""
    if not nbytes:
        return
    try:
        with open_regular(file).detach() as handle:
            if stamp is not None and FileStamp.of(os.fstat(handle.fileno())) != stamp:
                raise _unreadable(file, "the file changed after it was opened")
            handle.seek(offset)
            while nbytes > 0:
                chunk = handle.read(min(size, nbytes))
                if not chunk:
                    raise _unreadable(file, "the file was truncated while it was read")
                yield memoryview(chunk)
                nbytes -= len(chunk)
    except OSError as error:
        raise _unreadable(file, error.strerror or str(error)) from None


def _unreadable(file: Path, reason: str) -> AdapterFileError:
    return AdapterFileError(
        str(file), reason=reason, hint="Try again when no other program is writing the file."
    )
