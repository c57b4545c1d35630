"""Where the bytes of a torch storage lie, and tensors on them: plain ranges or slow reads."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from imageprompt.checkpoint.read.pickle.torch_objects import TensorView
from imageprompt.checkpoint.read.raw import DOWNLOAD_AGAIN, refuse
from imageprompt.checkpoint.read.stored_tensor import (
    CHUNK,
    ITEM_SIZES,
    FileStamp,
    StoredTensor,
    read_range,
)


@dataclass(frozen=True, slots=True)
class StorageBytes:
    """A storage's bytes: `packed` of them at `offset` of `file`, `nbytes` once unpacked."""

    file: Path
    stamp: FileStamp
    offset: int
    packed: int
    nbytes: int
    deflated: bool = False
    big_endian: bool = False

    def read(self, begin: int, end: int, size: int = CHUNK) -> Iterator[memoryview]:
        """Unpacked bytes [begin, end), in pieces of at most `size`."""
        if not self.deflated:
            return read_range(self.file, self.offset + begin, end - begin, size, self.stamp)
        return self._inflate(begin, end, size)

    def tensor(self, view: TensorView) -> StoredTensor:
        """The tensor that `view` describes."""
        begin, _ = view.span
        contiguous = view.contiguous
        plain = contiguous and not self.deflated and not self.big_endian
        place = (
            str(self.file),
            self.offset,
            begin,
            view.nbytes,
            None if contiguous else view.stride,
        )
        return StoredTensor(
            view.dtype,
            view.shape,
            self.file,
            self.offset + begin if plain else self.offset,
            place,
            self.stamp,
            None if plain else partial(self._slow, view),
        )

    def _slow(self, view: TensorView, size: int) -> Iterator[memoryview]:
        if view.contiguous and not self.big_endian:
            yield from self.read(*view.span, size)
            return
        import numpy as np

        item = ITEM_SIZES[view.dtype]
        touched = bytearray()
        for chunk in self.read(*view.span):
            touched += chunk
        strided = np.ndarray(
            view.shape,
            dtype=np.dtype(f"u{item}").newbyteorder(">" if self.big_endian else "<"),
            buffer=touched,
            strides=[step * item for step in view.stride],
        )
        content = memoryview(strided.astype(f"<u{item}", order="C").tobytes())
        for begin in range(0, len(content), size):
            yield content[begin : begin + size]

    def _inflate(self, begin: int, end: int, size: int) -> Iterator[memoryview]:
        unpacker, position = zlib.decompressobj(-zlib.MAX_WBITS), 0
        packed = read_range(self.file, self.offset, self.packed, stamp=self.stamp)
        rest, ended = b"", False
        while position < end:
            if not rest and not ended:
                rest = bytes(next(packed, b""))
                ended = not rest
            try:
                piece = unpacker.decompress(rest, size)
            except zlib.error:
                refuse(self.file, "a compressed record is damaged", DOWNLOAD_AGAIN)
            if ended and not piece:
                refuse(self.file, "a compressed record is cut off", DOWNLOAD_AGAIN)
            rest = unpacker.unconsumed_tail
            inside = memoryview(piece)[max(0, begin - position) : end - position]
            position += len(piece)
            if inside:
                yield inside
