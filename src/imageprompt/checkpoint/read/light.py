"""Light adapters: K' and V' as what they add, in low rank, to the base's own K and V of the text.

`to_k_ip.up.weight` [inner, r] and `to_k_ip.down.weight` [r, width] stand for the weight
[inner, width] of `to_k_ip`, K + up @ down in float32. Whoever reads tensors sees that weight; its
numbers can be read once `expanded` has been given the base's K and V.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from imageprompt.checkpoint.read.stored_tensor import StoredTensor, TensorBytes, TensorSource
from imageprompt.core.errors import AdapterFileError, printable
from imageprompt.core.untrusted import parse_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

LIGHT = "light"
"""The key of the metadata; its value is JSON, see `LightForm`."""
UP, DOWN = ".up.weight", ".down.weight"
AS_LIGHT = ", light"
"""How the container of such a file ends."""
NOTE = "light: "
FLOATS = {"F32": "<f4", "F16": "<f2"}
MAX_JSON = 2**16  # characters
MAX_WEIGHT = 2**26  # numbers of one weight; FLUX has 1.3e7
ROWS = 256  # of a weight that are computed at a time, always the same, so the bits are too

Text = Mapping[str, TensorBytes]
"""The base's weights of the text by the name of what is made from them, in float32."""


@dataclass(frozen=True)
class LightForm:
    """What a light file says about itself."""

    stored: Mapping[str, StoredTensor]
    """What the file itself holds."""
    rank: int
    """The largest."""
    on_base: frozenset[str]
    """The weights that are a difference to the base's; others in low rank stand for themselves."""
    base: str
    """The name that the base had."""
    fingerprints: Mapping[str, str]
    """Of the base's weights of the text, by the precision that they were rounded to."""


def with_light(source: TensorSource) -> TensorSource:
    """The same source with whole weights in place of low-rank pairs; others are left as they are.

    What is a difference to the base can only be read after `expanded`.
    """
    pairs = {
        name.removesuffix(UP) + ".weight": (tensor, source.tensors[name.removesuffix(UP) + DOWN])
        for name, tensor in source.tensors.items()
        if _is_pair(name, tensor, source.tensors.get(name.removesuffix(UP) + DOWN))
    }
    stated = _stated(source.metadata)
    if not pairs or stated is None:
        return source
    alone = {name for name in pairs if name in _names(stated.get("alone"))}
    rank = max(up.shape[1] for up, _ in pairs.values())
    form = LightForm(
        source.tensors,
        rank,
        frozenset(pairs) - alone,
        printable(str(stated.get("base", ""))[:200]),
        {key: str(value) for key, value in _texts(stated.get("fingerprints")).items()},
    )
    whole = {
        name: _product(up, down, partial(_pieces, up, down, None))
        if name in alone
        else _product(up, down, partial(_no_base, source.path, form.base))
        for name, (up, down) in pairs.items()
    }
    parts = {name.removesuffix(".weight") + end for name in pairs for end in (UP, DOWN)}
    tensors = {name: one for name, one in source.tensors.items() if name not in parts} | whole
    made = f" of {form.base}" if form.base else ""
    note = f"{NOTE}K' and V' are of rank {rank} or less beside K and V{made}, and need that base"
    container, notes = source.container + AS_LIGHT, (*source.notes, note)
    return replace(source, tensors=tensors, container=container, notes=notes, light=form)


def expanded(source: TensorSource, text: Text) -> TensorSource:
    """A light source on its base: every weight can be read, and nothing says any more that it is
    light. Raises AdapterFileError for a base that lacks a weight, or has it in another shape."""
    form = source.light
    if form is None:
        return source
    tensors = dict(source.tensors)
    for name in sorted(form.on_base):
        own = text.get(name)
        shape = None if own is None else own.shape
        if shape != tensors[name].shape:
            raise AdapterFileError(
                str(source.path),
                reason=f"a light adapter for another base: {name} is {_size(tensors[name].shape)}, "
                + ("the base has no such weight" if shape is None else f"not {_size(shape)}"),
                hint=f"It was made for {form.base or 'a base that it does not name'}.",
            )
        pair = (form.stored[name.removesuffix(".weight") + end] for end in (UP, DOWN))
        up, down = pair
        tensors[name] = _product(up, down, partial(_pieces, up, down, own))
    container = source.container.removesuffix(AS_LIGHT)
    notes = tuple(note for note in source.notes if not note.startswith(NOTE))
    metadata = {key: value for key, value in source.metadata.items() if key != LIGHT}
    return replace(
        source, tensors=tensors, container=container, metadata=metadata, notes=notes, light=None
    )


def refuse_without_base(path: Path, base: str) -> NoReturn:
    """Raises AdapterFileError: what it is, and how it can be read."""
    raise AdapterFileError(
        str(path),
        reason="a light adapter: its K' and V' are differences to those of its base"
        + (f", {base}" if base else ""),
        hint="Name the base: Adapter.load(file, base=pipe) in Python, or imageprompt convert "
        "light.safetensors full.safetensors --base DIR.",
    )


def _no_base(path: Path, base: str, size: int) -> Iterator[memoryview]:
    refuse_without_base(path, base)


def _is_pair(name: str, up: StoredTensor, down: StoredTensor | None) -> bool:
    """Do these two make a weight of a site, of a size that a base has?"""
    return (
        name.endswith(("to_k_ip" + UP, "to_v_ip" + UP))
        and down is not None
        and len(up.shape) == len(down.shape) == 2
        and up.shape[1] == down.shape[0] <= min(up.shape[0], down.shape[1])
        and up.shape[0] * down.shape[1] <= MAX_WEIGHT
        and {up.dtype, down.dtype} <= set(FLOATS)
    )


def _product(up: StoredTensor, down: StoredTensor, read: Any) -> StoredTensor:
    return replace(
        up,
        dtype="F32",
        shape=(up.shape[0], down.shape[1]),
        storage=(up.storage, down.storage),
        read_slowly=read,
    )


def _pieces(
    up: StoredTensor, down: StoredTensor, own: TensorBytes | None, size: int
) -> Iterator[memoryview]:
    """The base's weight, if any, plus the product, in pieces of at most `size` bytes."""
    import numpy as np

    left, right = _array(up), _array(down)
    base = None
    if own is not None:
        base = np.frombuffer(b"".join(own.chunks()), "<f4").reshape(own.shape)
    for start in range(0, len(left), ROWS):
        part = left[start : start + ROWS] @ right
        if base is not None:
            part = base[start : start + ROWS] + part
        content = memoryview(part.astype("<f4").tobytes())
        yield from (content[at : at + size] for at in range(0, len(content), size))


def _array(tensor: StoredTensor) -> NDArray[Any]:
    import numpy as np

    stored = np.frombuffer(tensor.read(), FLOATS[tensor.dtype]).reshape(tensor.shape)
    return stored.astype(np.float32)


def _stated(metadata: Mapping[str, str]) -> Mapping[str, Any] | None:
    """The JSON of the metadata; None without or if it is something else."""
    text = metadata.get(LIGHT, "")
    if not 0 < len(text) <= MAX_JSON:
        return None
    try:
        found = parse_json(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _names(value: object) -> frozenset[str]:
    listed = value if isinstance(value, list) else []
    return frozenset(name for name in listed if isinstance(name, str))


def _texts(value: object) -> Mapping[str, str]:
    return value if isinstance(value, dict) else {}


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
