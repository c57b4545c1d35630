"""safetensors: an 8-byte length, a JSON header, then the tensors without holes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

from imageprompt.checkpoint.read.json_text import MAX_JSON, parse_table
from imageprompt.checkpoint.read.raw import RawFile
from imageprompt.checkpoint.read.refusals import refuse
from imageprompt.checkpoint.read.stored_tensor import ITEM_SIZES, Source, StoredTensor

MAX_DIMENSIONS = 32
_AGAIN = "Download it again."


def looks_like_safetensors(start: bytes, size: int) -> bool:
    """Does a file of `size` bytes begin with a length and a `{`?

    To be asked before any other container: the length may begin with the bytes of any magic
    number. Text never has a NUL, where a length, even a wrong one, does.
    """
    fits = int.from_bytes(start[:8], "little") <= size - 8
    return start[8:9] == b"{" and (fits or b"\0" in start[:8])


def read_safetensors(raw: RawFile) -> Source:
    """The tensors that a header tells, each checked to lie in the file; nothing else is read."""
    path = raw.path
    length = int.from_bytes(raw.at(0, 8), "little")
    if length > MAX_JSON:
        refuse(path, f"its header claims {length} bytes; the limit is {MAX_JSON}", _AGAIN)
    if length > raw.size - 8:
        refuse(path, "its header is cut off", _AGAIN)
    entries = parse_table(path, raw.at(8, length), "header")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        refuse(path, "its metadata is no table of texts", _AGAIN)
    start = 8 + length
    tensors = [(name, _tensor(raw, name, entry, start)) for name, entry in entries.items()]
    tensors.sort(key=lambda item: (item[1].offset, item[1].nbytes))
    _check_layout(raw, tensors, start)
    return Source(path, (path,), "safetensors", dict(tensors), metadata)


def _tensor(raw: RawFile, name: str, entry: object, start: int) -> StoredTensor:
    known: Mapping[str, Any] = entry if isinstance(entry, dict) else {}
    dtype, shape = known.get("dtype"), known.get("shape")
    offsets = known.get("data_offsets")
    if not (_sizes(shape) and _sizes(offsets) and len(offsets) == 2 and isinstance(dtype, str)):
        refuse(raw.path, f"its header does not say where {name[:80]!r} is", _AGAIN)
    if dtype not in ITEM_SIZES:
        refuse(raw.path, f"{name[:80]!r} has the dtype {dtype[:20]!r}, which no adapter has")
    begin, end = offsets
    place = (str(raw.path), begin, end - begin)
    tensor = StoredTensor(dtype, tuple(shape), raw.path, raw.base + start + begin, place, raw.stamp)
    if tensor.nbytes != end - begin:
        refuse(
            raw.path,
            f"{name[:80]!r} of shape {shape} in {dtype} takes {tensor.nbytes} bytes, "
            f"its header says {end - begin}",
            _AGAIN,
        )
    return tensor


def _sizes(value: object) -> TypeGuard[list[int]]:
    """A short list of natural numbers that fit 64 bits (JSON's true and 1.0 are none)."""
    return (
        isinstance(value, list)
        and len(value) <= MAX_DIMENSIONS
        and all(type(n) is int and 0 <= n < 2**63 for n in value)
    )


def _check_layout(raw: RawFile, tensors: list[tuple[str, StoredTensor]], start: int) -> None:
    position = raw.base + start
    for name, tensor in tensors:
        if tensor.offset != position:
            fault = "overlap" if tensor.offset < position else "leave a hole"
            refuse(raw.path, f"its tensors {fault} at {name[:80]!r}", _AGAIN)
        position += tensor.nbytes
    end = raw.base + raw.size
    if position > end:
        refuse(raw.path, f"it is cut off: {position - end} bytes are missing", _AGAIN)
    if position < end:
        refuse(raw.path, f"{end - position} bytes follow its last tensor", _AGAIN)
