"""safetensors files: an 8-byte length, a JSON header, then the tensors without holes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from imageprompt.checkpoint.read.raw import (
    DOWNLOAD_AGAIN,
    MAX_JSON,
    RawFile,
    parse_json_object,
    refuse,
)
from imageprompt.checkpoint.read.stored_tensor import (
    ITEM_SIZES,
    StoredTensor,
    TensorSource,
    is_shape,
)


def looks_like_safetensors(start: bytes, size: int) -> bool:
    """Does a file of `size` bytes begin with a length and a `{`?

    Check this before any other container: the length may begin with the bytes of any magic
    number. Text never contains a NUL, but a length does, even a wrong one.
    """
    fits = int.from_bytes(start[:8], "little") <= size - 8
    return start[8:9] == b"{" and (fits or b"\0" in start[:8])


def read_safetensors(raw: RawFile) -> TensorSource:
    """The tensors in the header, each checked to lie inside the file; no weights are read."""
    path = raw.path
    length = int.from_bytes(raw.read_at(0, 8), "little")
    if length > MAX_JSON:
        refuse(path, f"the header claims {length} bytes; the limit is {MAX_JSON}", DOWNLOAD_AGAIN)
    if length > raw.size - 8:
        refuse(path, "the header is cut off", DOWNLOAD_AGAIN)
    entries = parse_json_object(path, raw.read_at(8, length), "header", raw.budget)
    metadata = entries.pop("__metadata__", {})
    _check_metadata(path, metadata)
    start = 8 + length
    tensors = [(name, _tensor(raw, name, entry, start)) for name, entry in entries.items()]
    tensors.sort(key=lambda item: (item[1].offset, item[1].nbytes))
    _check_layout(raw, tensors, start)
    return TensorSource(path, (path,), "safetensors", dict(tensors), metadata)


def _check_metadata(path: Path, metadata: object) -> None:
    """A table of strings that can be written again: the library of safetensors refuses others."""
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        refuse(path, "the metadata is not a table of strings", DOWNLOAD_AGAIN)
    try:
        for text in (*metadata, *metadata.values()):
            text.encode()
    except UnicodeEncodeError:
        refuse(path, "the metadata contains half a character (a lone surrogate)", DOWNLOAD_AGAIN)


def _tensor(raw: RawFile, name: str, entry: object, start: int) -> StoredTensor:
    fields: Mapping[str, Any] = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = (fields.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not (_is_shape(shape) and _are_offsets(offsets) and isinstance(dtype, str)):
        refuse(raw.path, f"the header does not say where {name[:80]!r} is", DOWNLOAD_AGAIN)
    if dtype not in ITEM_SIZES:
        refuse(raw.path, f"{name[:80]!r} has the dtype {dtype[:20]!r}, which no adapter uses")
    begin, end = offsets
    storage = (str(raw.path), begin, end - begin)
    offset = raw.base + start + begin
    tensor = StoredTensor(dtype, tuple(shape), raw.path, offset, storage, raw.stamp)
    if tensor.nbytes != end - begin:
        refuse(
            raw.path,
            f"{name[:80]!r} of shape {shape} in {dtype} takes {tensor.nbytes} bytes, "
            f"but the header says {end - begin}",
            DOWNLOAD_AGAIN,
        )
    return tensor


def _is_shape(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and is_shape(value)


def _are_offsets(value: object) -> TypeGuard[list[int]]:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(type(n) is int and 0 <= n < 2**63 for n in value)
    )


def _check_layout(raw: RawFile, tensors: list[tuple[str, StoredTensor]], start: int) -> None:
    position = raw.base + start
    for name, tensor in tensors:
        if tensor.offset != position:
            fault = "overlap" if tensor.offset < position else "leave a hole"
            refuse(raw.path, f"the tensors {fault} at {name[:80]!r}", DOWNLOAD_AGAIN)
        position += tensor.nbytes
    end = raw.base + raw.size
    if position > end:
        missing = position - end
        refuse(raw.path, f"the file is cut off: {missing} bytes are missing", DOWNLOAD_AGAIN)
    if position < end:
        refuse(raw.path, f"{end - position} bytes follow the last tensor", DOWNLOAD_AGAIN)
