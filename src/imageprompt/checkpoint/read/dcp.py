"""torch DCP folders: `.metadata` says which pieces of a tensor lie where in the `.distcp` files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, TypeGuard

from imageprompt.checkpoint.read.file import check_names
from imageprompt.checkpoint.read.pickle.machine import MAX_PICKLE, Global, Opaque, PickleError
from imageprompt.checkpoint.read.pickle.torch_objects import TensorView, TorchPickle, natural
from imageprompt.checkpoint.read.pickle.torch_tensors import WRAPPERS, refuse_pickle, slow_notes
from imageprompt.checkpoint.read.pickle.torch_zip import read_torch_zip
from imageprompt.checkpoint.read.raw import RawFile, check_files, is_file_name, refuse
from imageprompt.checkpoint.read.stored_tensor import (
    ITEM_SIZES,
    MAX_DIMENSIONS,
    TORCH_DTYPES,
    StoredTensor,
    TensorSource,
    is_shape,
)
from imageprompt.core.untrusted import Budget

METADATA = ".metadata"
_COPY = "Copy the whole folder, with the files of all ranks."
_DAMAGED = ".metadata is damaged"
Sizes = tuple[int, ...]


@dataclass(frozen=True)
class _Piece:
    """A part of a tensor: its place in the tensor and in a file."""

    offsets: Sizes
    file: Path
    begin: int
    length: int


def read_dcp(folder: Path, *, inside: Path | None = None, budget: Budget) -> TensorSource:
    """The weights of a torch.distributed.checkpoint folder, from the files of all ranks.

    `inside`: the folder that they must lie in, links followed (`folder` itself if None).
    """
    index, inside = folder / METADATA, inside or folder
    with RawFile(index, inside=inside, budget=budget) as raw:
        if raw.size > MAX_PICKLE:
            refuse(index, f"the file has {raw.size} bytes; the limit is {MAX_PICKLE}")
        try:
            value, _ = TorchPickle(budget=budget).read(raw.read_at(0, raw.size))
        except PickleError as error:
            refuse_pickle(index, error)
        return _source(raw, folder, inside, value)


def _source(raw: RawFile, folder: Path, inside: Path, value: Any) -> TensorSource:
    index = raw.path
    state = _state(index, value)
    described, notes = _weights(_table(index, state.get("state_dict_metadata")))
    pieces = _pieces(folder, _table(index, state.get("storage_data")))
    files = list(dict.fromkeys(piece.file for parts in pieces.values() for piece in parts))
    lost = [file.name for file in files if not file.exists()]
    if lost:
        refuse(folder, f"{len(lost)} of its files are missing ({', '.join(lost[:5])})", _COPY)
    check_files(folder, files, inside)
    _check_apart(index, pieces)
    tensors = {
        short: _tensor(raw, entry, pieces.get(full, []))
        for short, (full, entry) in described.items()
    }
    if not tensors:
        refuse(folder, "this torch DCP folder contains no tensors")
    source = TensorSource(
        folder,
        (index, *files),
        "torch DCP",
        tensors,
        notes=(*notes, *slow_notes(tensors)),
    )
    check_names(source)
    return source


def _weights(entries: dict[Any, Any]) -> tuple[dict[str, tuple[str, Any]], list[str]]:
    """Short name -> (name in the folder, description): the model's tensors, without the prefix."""
    tensors = {
        name: entry
        for name, entry in entries.items()
        if isinstance(name, str) and isinstance(entry, Opaque) and "Tensor" in entry.name
    }
    for wrapper in (*(f"app.{one}." for one in WRAPPERS), *(f"{one}." for one in WRAPPERS)):
        inner = {
            n.removeprefix(wrapper): (n, e) for n, e in tensors.items() if n.startswith(wrapper)
        }
        if inner:
            outside = len(tensors) - len(inner)
            return inner, [f"{outside} tensors outside {wrapper!r} are ignored"] * bool(outside)
    return {name: (name, entry) for name, entry in tensors.items()}, []


def _pieces(folder: Path, storage: dict[Any, Any]) -> dict[str, list[_Piece]]:
    index = folder / METADATA
    pieces: dict[str, list[_Piece]] = {}
    for key, info in storage.items():
        where, place = _state(index, key), _state(index, info)
        name, file = where.get("fqn"), place.get("relative_path")
        span = (place.get("offset"), place.get("length"))
        offsets = where.get("offset") or ()
        if place.get("transform_descriptors"):
            refuse(index, "the pieces are compressed or encrypted", "Save it again without.")
        if not (isinstance(name, str) and is_file_name(file) and _sizes(offsets) and _sizes(span)):
            refuse(index, _DAMAGED)
        pieces.setdefault(name, []).append(_Piece(offsets, folder / file, *span))
    return pieces


def _check_apart(index: Path, pieces: dict[str, list[_Piece]]) -> None:
    """No two pieces may overlap: this bounds the reading time by the size of the files."""
    ends: dict[Path, int] = {}
    for piece in sorted((p for parts in pieces.values() for p in parts), key=lambda p: p.begin):
        if piece.begin < ends.get(piece.file, 0):
            refuse(index, "the pieces of its tensors overlap", _COPY)
        ends[piece.file] = piece.begin + piece.length


def _tensor(raw: RawFile, entry: Opaque, pieces: list[_Piece]) -> StoredTensor:
    index, state = raw.path, _state(raw.path, entry)
    shape, properties = state.get("size"), state.get("properties")
    kind = properties.state if isinstance(properties, Opaque) else None
    dtype = kind[0] if isinstance(kind, tuple) and kind else None
    if not isinstance(dtype, Global) or dtype.name not in TORCH_DTYPES or not _shape(shape):
        refuse(index, _DAMAGED)
    parts = [(piece.offsets or (0,) * len(shape), _stored(piece, raw.budget)) for piece in pieces]
    name = TORCH_DTYPES[dtype.name]
    for offsets, part in parts:
        ends = [o + n for o, n in zip(offsets, part.shape, strict=False)]
        fits = len(offsets) == len(part.shape) == len(shape) and part.dtype == name
        if not fits or any(end > size for end, size in zip(ends, shape, strict=True)):
            refuse(index, "a piece of a tensor does not fit the tensor")
    if not parts or sum(prod(part.shape) for _, part in parts) != prod(shape):
        refuse(index, "pieces of a tensor are missing", _COPY)
    _check_disjoint(index, [(o, part.shape) for o, part in parts], raw.budget)
    if len(parts) == 1:
        return parts[0][1]
    whole = replace(parts[0][1], shape=shape, read_slowly=None)
    return replace(whole, read_slowly=partial(_join, whole, parts), storage=(whole.storage, shape))


def _check_disjoint(index: Path, boxes: list[tuple[Sizes, Sizes]], budget: Budget) -> None:
    """No two pieces may hold the same part of a tensor, or another part would have no value."""
    before: list[tuple[Sizes, Sizes]] = []
    for begin, shape in sorted(boxes):
        before = [(b, n) for b, n in before if begin and b[0] + n[0] > begin[0]]
        budget.add(len(before))
        for b, n in before:
            spans = zip(begin, shape, b, n, strict=True)
            if all(max(x, y) < min(x + nx, y + ny) for x, nx, y, ny in spans):
                refuse(index, "two pieces of a tensor overlap", _COPY)
        before.append((begin, shape))


def _stored(piece: _Piece, budget: Budget) -> StoredTensor:
    """The one tensor in a piece, which is itself a torch file inside the larger one."""
    with RawFile(piece.file, piece.begin, piece.length, budget=budget) as raw:
        if raw.read_at(0, 2) != b"PK":
            refuse(piece.file, "the pieces are not torch files", "Save it in torch's own format.")
        unpickled = read_torch_zip(raw)
        if not isinstance(unpickled.value, TensorView):
            refuse(piece.file, "a piece in it is not a tensor")
        return unpickled.locate(unpickled.value)


def _join(
    whole: StoredTensor, parts: list[tuple[Sizes, StoredTensor]], size: int
) -> Iterator[memoryview]:
    import numpy as np

    dtype = np.dtype(f"u{ITEM_SIZES[whole.dtype]}")
    joined = np.zeros(whole.shape, dtype)
    for offsets, part in parts:
        place = tuple(slice(o, o + n) for o, n in zip(offsets, part.shape, strict=True))
        joined[place] = np.frombuffer(part.read(), dtype).reshape(part.shape)
    content = joined.reshape(-1).view(np.uint8).data
    for begin in range(0, len(content), size):
        yield content[begin : begin + size]


def _state(index: Path, value: Any) -> dict[Any, Any]:
    return _table(index, value.state if isinstance(value, Opaque) else None)


def _table(index: Path, value: Any) -> dict[Any, Any]:
    if not isinstance(value, dict):
        refuse(index, _DAMAGED)
    return value


def _shape(value: Any) -> TypeGuard[Sizes]:
    return isinstance(value, tuple) and is_shape(value)


def _sizes(value: Any) -> TypeGuard[Sizes]:
    return isinstance(value, tuple) and len(value) <= MAX_DIMENSIONS and all(map(natural, value))
