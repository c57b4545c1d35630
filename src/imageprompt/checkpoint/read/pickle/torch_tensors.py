"""From unpickled torch values to stored tensors: their dotted names, and where their bytes lie."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from imageprompt.checkpoint.read.pickle.machine import Global, Opaque, PickleError
from imageprompt.checkpoint.read.pickle.torch_objects import TensorView
from imageprompt.checkpoint.read.raw import (
    DOWNLOAD_AGAIN,
    UNPACKED,
    UNPACKED_PER_BYTE,
    refuse,
)
from imageprompt.checkpoint.read.stored_tensor import (
    CHUNK,
    ITEM_SIZES,
    MAX_NAME,
    FileStamp,
    StoredTensor,
    TensorSource,
    read_range,
)
from imageprompt.core.untrusted import Budget, LimitError

MAX_DEPTH = 32
MAX_VALUES = 50_000
WRAPPERS = ("module", "state_dict", "model", "model_state_dict")  # what trainers put weights under

_SAVE_AGAIN = "Save it again with torch.save, each tensor by itself."
ADAPTER_PARTS = ("image_proj", "image_proj_model", "ip_adapter", "adapter_modules")


@dataclass(frozen=True)
class UnpickledFile:
    """The value of a torch file, how to find its tensors, and the classes that were not opened."""

    value: Any
    container: str
    locate: Callable[[TensorView], StoredTensor]
    unopened: Mapping[str, int]


def refuse_pickle(path: Path, error: PickleError) -> NoReturn:
    refuse(path, str(error), error.hint)


def to_source(path: Path, unpickled: UnpickledFile) -> TensorSource:
    """The tensors by flat dotted name, in the order of the pickle. Raises AdapterFileError."""
    _refuse_optimiser(path, unpickled.value)
    root, notes = _unwrap(unpickled.value)
    if not isinstance(root, dict):
        refuse(
            path,
            f"it contains a single value of type {_type_name(root)}, not tensors by name",
            "Save the state_dict() of the adapter instead.",
        )
    tensors: dict[str, StoredTensor] = {}
    others: list[str] = []
    for name, value in _leaves(path, root):
        if not isinstance(value, TensorView):
            others.append(f"{name} ({_type_name(value)})")
        elif name in tensors:
            refuse(path, f"it contains the name {name!r} twice")
        else:
            tensors[name] = unpickled.locate(value)
    if not tensors:
        refuse(path, f"it contains no tensors, only {', '.join(others[:3]) or 'an empty table'}")
    _refuse_partition(path, unpickled.value, tensors)
    if others:
        notes.append(f"ignoring {len(others)} values that are not tensors: {', '.join(others[:3])}")
    if unpickled.unopened:
        names = ", ".join(name[:60] for name in list(unpickled.unopened)[:3])
        notes.append(f"ignoring values of the classes {names}")
    notes += slow_notes(tensors)
    return TensorSource(path, (path,), unpickled.container, tensors, {}, tuple(notes))


def slow_notes(tensors: Mapping[str, StoredTensor]) -> list[str]:
    """A note on tensors that are not plain bytes of the file."""
    slow = sum(not tensor.plain for tensor in tensors.values())
    what = "compressed, strided or in pieces, which is slower to read"
    return [f"{slow} tensors are {what}"] if slow else []


def _refuse_optimiser(path: Path, value: Any) -> None:
    """Refuse what lies beside the weights in a training checkpoint: the state of an optimiser."""
    if not isinstance(value, dict):
        return
    if "optimizer_state_dict" in value and "module" not in value:
        from imageprompt.checkpoint.read.refusals import explain_partitions

        explain_partitions(path, "this is an optimiser's partition, without names of weights")
    if {"state", "param_groups"} <= value.keys():
        refuse(path, "this is the state of an optimiser", "Give the model file saved with it.")


def _refuse_partition(path: Path, value: Any, tensors: Mapping[str, StoredTensor]) -> None:
    """Refuse a partition that is given by itself.

    DeepSpeed leaves an empty tensor for each weight that it split; small weights stay whole.
    """
    empty = sum(not tensor.nbytes for tensor in tensors.values())
    split = isinstance(value, dict) and "param_shapes" in value
    if empty == len(tensors) or (empty and split):
        from imageprompt.checkpoint.read.refusals import ZERO_3, explain_partitions

        explain_partitions(path, f"{empty} of its {len(tensors)} tensors are empty: {ZERO_3}")


def _unwrap(value: Any) -> tuple[Any, list[str]]:
    """What a trainer keeps under ["module"], ["state_dict"] ..., and a note on the rest."""
    if not isinstance(value, dict) or _several_candidates(value):
        return value, []
    for name in WRAPPERS:
        inner = value.get(name)
        values = inner.values() if isinstance(inner, dict) else ()
        if any(isinstance(one, TensorView | dict) for one in values):
            others = [_label(key) or _type_name(key) for key in value if key != name]
            note = f"reading the tensors under [{name!r}]"
            return inner, [f"{note}; ignoring {', '.join(others[:5])}" if others else note]
    return value, []


def _several_candidates(value: dict[Any, Any]) -> bool:
    """Whether an adapter may be in several of these tables: then names tell which is what."""
    inner = [key for key in WRAPPERS if isinstance(value.get(key), dict)]
    heads = {key.split(".", 1)[0] for key in value if isinstance(key, str)}
    return len(inner) > 1 or (bool(inner) and not heads.isdisjoint(ADAPTER_PARTS))


def _leaves(path: Path, root: dict[Any, Any]) -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of everything in nested tables that is not itself a table, in order."""
    levels = [("", iter(root.items()))]
    for _ in range(MAX_VALUES):
        prefix, items = levels[-1]
        key, value = next(items, (None, levels))
        if value is levels:  # this table is finished
            levels.pop()
            if not levels:
                return
            continue
        label = _label(key)
        if label is None or len(prefix) + len(label) > MAX_NAME:
            refuse(path, f"it contains a name of type {_type_name(key)}, or one that is too long")
        if not isinstance(value, dict):
            yield f"{prefix}{label}", value
        elif len(levels) == MAX_DEPTH:
            refuse(path, f"its tables are nested more than {MAX_DEPTH} deep")
        else:
            levels.append((f"{prefix}{label}.", iter(value.items())))
    refuse(path, f"it contains more than {MAX_VALUES} values")


def _label(key: Any) -> str | None:
    """A key as a part of a dotted name; None if it cannot be one."""
    if isinstance(key, str) and len(key) <= MAX_NAME:
        return key
    return str(key) if type(key) is int and abs(key) < 2**63 else None


def _type_name(value: Any) -> str:
    if isinstance(value, TensorView):
        return "tensor"
    return value.name[:80] if isinstance(value, Opaque | Global) else type(value).__name__


# ── bytes ────────────────────────────────────────────────────────────────────────────────────────


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

    def tensor(self, view: TensorView, budget: Budget) -> StoredTensor:
        """The tensor that `view` describes; what reading it takes is taken from `budget`."""
        contiguous = view.contiguous
        self._check_cost(view, contiguous, budget)
        begin, _ = view.span
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

    def _check_cost(self, view: TensorView, contiguous: bool, budget: Budget) -> None:
        """A deflated storage is unpacked from its start for each of its tensors."""
        begin, end = view.span
        if not contiguous and end - begin > UNPACKED + UNPACKED_PER_BYTE * view.nbytes:
            reason = f"a tensor of {view.nbytes} bytes is spread over {end - begin}"
            refuse(self.file, reason, _SAVE_AGAIN)
        try:
            budget.unpack(max(view.nbytes, end if self.deflated else end - begin))
        except LimitError:
            reason = f"reading its tensors would unpack more than {budget.unpacked} bytes"
            refuse(self.file, f"{reason}: they repeat what is stored", _SAVE_AGAIN)

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
        content = strided.astype(f"<u{item}", order="C").reshape(-1).view(np.uint8).data
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
