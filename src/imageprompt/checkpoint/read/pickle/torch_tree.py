"""From the value of a torch pickle to named tensors: nested names joined by dots."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from imageprompt.checkpoint.read.deepspeed import check_whole, explain_training_state
from imageprompt.checkpoint.read.pickle.machine import Global, Opaque, PickleError
from imageprompt.checkpoint.read.pickle.torch_objects import View
from imageprompt.checkpoint.read.refusals import refuse
from imageprompt.checkpoint.read.stored_tensor import MAX_NAME, Source, StoredTensor

MAX_DEPTH = 32
MAX_VALUES = 50_000
WRAPPERS = ("module", "state_dict", "model", "model_state_dict")  # what trainers put weights under


@dataclass(frozen=True)
class Pickled:
    """A torch file's value, how to find its tensors, and the leaves that were left out."""

    value: Any
    container: str
    locate: Callable[[View], StoredTensor]
    leaves: Mapping[str, int]


def refuse_pickle(path: Path, error: PickleError) -> NoReturn:
    refuse(path, str(error), error.remedy)


def to_source(path: Path, pickled: Pickled) -> Source:
    """The tensors by flat dotted name, in the order of the pickle."""
    explain_training_state(path, pickled.value)
    root, notes = _unwrap(pickled.value)
    if not isinstance(root, dict):
        refuse(
            path,
            f"it holds one value of the kind {_kind(root)}, not tensors by name",
            "Save the state_dict() of the adapter instead.",
        )
    tensors: dict[str, StoredTensor] = {}
    left_out: list[str] = []
    for name, value in _leaves(path, root):
        if not isinstance(value, View):
            left_out.append(f"{name} ({_kind(value)})")
        elif name in tensors:
            refuse(path, f"it names {name!r} twice")
        else:
            tensors[name] = pickled.locate(value)
    if not tensors:
        refuse(path, f"it holds no tensors, only {', '.join(left_out[:3]) or 'an empty table'}")
    check_whole(path, pickled.value, tensors)
    if left_out:
        notes.append(f"{len(left_out)} values are no tensors: {', '.join(left_out[:3])}")
    if pickled.leaves:
        names = ", ".join(name[:60] for name in list(pickled.leaves)[:3])
        notes.append(f"values of these classes were not opened: {names}")
    notes += slow_notes(tensors)
    return Source(path, (path,), pickled.container, tensors, {}, tuple(notes))


def slow_notes(tensors: Mapping[str, StoredTensor]) -> list[str]:
    """What is said once about tensors that are no plain bytes of the file."""
    slow = sum(not tensor.plain for tensor in tensors.values())
    what = "compressed, strided or in pieces"
    return [f"{slow} tensors are {what}: they are read the slow way"] if slow else []


def _unwrap(value: Any) -> tuple[Any, list[str]]:
    """What a trainer keeps under ["module"], ["state_dict"] ..., and a note on the rest."""
    for name in WRAPPERS if isinstance(value, dict) else ():
        inner = value.get(name)
        if isinstance(inner, dict) and any(isinstance(v, View | dict) for v in inner.values()):
            others = [_label(key) or _kind(key) for key in value if key != name]
            note = f"the tensors under [{name!r}] are read"
            return inner, [f"{note}; left out: {', '.join(others[:5])}" if others else note]
    return value, []


def _leaves(path: Path, root: dict[Any, Any]) -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of everything in nested tables that is no table itself, in order."""
    levels = [("", iter(root.items()))]
    for _ in range(MAX_VALUES):
        prefix, items = levels[-1]
        key, value = next(items, (None, levels))
        if value is levels:  # this table is at its end
            levels.pop()
            if not levels:
                return
            continue
        label = _label(key)
        if label is None or len(prefix) + len(label) > MAX_NAME:
            refuse(path, f"it has a name of the kind {_kind(key)}, or one without end")
        if not isinstance(value, dict):
            yield f"{prefix}{label}", value
        elif len(levels) == MAX_DEPTH:
            refuse(path, f"its tables are nested more than {MAX_DEPTH} deep")
        else:
            levels.append((f"{prefix}{label}.", iter(value.items())))
    refuse(path, f"it holds more than {MAX_VALUES} values")


def _label(key: Any) -> str | None:
    """A key as a part of a dotted name; None where it cannot be one."""
    if isinstance(key, str) and len(key) <= MAX_NAME:
        return key
    return str(key) if type(key) is int and abs(key) < 2**63 else None


def _kind(value: Any) -> str:
    if isinstance(value, View):
        return "tensor"
    return value.name[:80] if isinstance(value, Opaque | Global) else type(value).__name__
