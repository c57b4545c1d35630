"""From the value of a torch pickle to named tensors: nested names joined by dots."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from imageprompt.checkpoint.read.pickle.machine import Global, Opaque, PickleError
from imageprompt.checkpoint.read.pickle.torch_objects import TensorView
from imageprompt.checkpoint.read.raw import refuse
from imageprompt.checkpoint.read.stored_tensor import MAX_NAME, StoredTensor, TensorSource

MAX_DEPTH = 32
MAX_VALUES = 50_000
WRAPPERS = ("module", "state_dict", "model", "model_state_dict")  # what trainers put weights under


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
    for name in WRAPPERS if isinstance(value, dict) else ():
        inner = value.get(name)
        values = inner.values() if isinstance(inner, dict) else ()
        if any(isinstance(one, TensorView | dict) for one in values):
            others = [_label(key) or _type_name(key) for key in value if key != name]
            note = f"reading the tensors under [{name!r}]"
            return inner, [f"{note}; ignoring {', '.join(others[:5])}" if others else note]
    return value, []


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
