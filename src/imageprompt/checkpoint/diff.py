"""Which weights of two adapter files differ, and by how much, whatever their layouts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from imageprompt.checkpoint.identify.checks import canonical
from imageprompt.checkpoint.identify.identify import identify
from imageprompt.checkpoint.read.open import locate_source, open_source
from imageprompt.checkpoint.read.stored_tensor import CHUNK, ITEM_SIZES, StoredTensor
from imageprompt.checkpoint.report import base_name, rows
from imageprompt.checkpoint.tensor_bytes import pieces, same_bytes
from imageprompt.core.errors import as_text
from imageprompt.core.hub import Location
from imageprompt.core.spec import HostSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_LISTED = 20  # tensors in the text; the JSON has all


@dataclass(frozen=True, kw_only=True)
class TensorChange:
    """How far a tensor of B is from the same tensor of A.

    `relative` is |A - B| / |A| and `cosine` the cosine of the angle between them (|.| the
    Euclidean norm). None where undefined: different shapes, NaN, all zeros.
    """

    name: str
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    dtypes: tuple[str, str]
    max_abs: float | None = None
    relative: float | None = None
    cosine: float | None = None

    def __str__(self) -> str:
        if self.shapes[0] != self.shapes[1]:
            return f"shape {list(self.shapes[0])} in A, {list(self.shapes[1])} in B"
        if self.max_abs is None:
            return "NaN or infinite values"
        dtypes = "" if self.dtypes[0] == self.dtypes[1] else f", {' in A, '.join(self.dtypes)} in B"
        numbers = {"max abs": self.max_abs, "relative": self.relative, "cosine": self.cosine}
        defined = (f"{name} {value:.3g}" for name, value in numbers.items() if value is not None)
        return ", ".join(defined) + dtypes


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Two adapters side by side, by the names of the standard layout."""

    a: str
    b: str
    formats: tuple[str, str]
    hosts: tuple[str, str]
    equal: int
    """Number of tensors equal in dtype, shape and every bit."""
    changed: tuple[TensorChange, ...] = field(default=())
    only_a: tuple[str, ...] = ()
    only_b: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        """True if all weights are equal to the bit."""
        return not (self.changed or self.only_a or self.only_b)

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "changed": [vars(change) for change in self.changed]} | {
            "same": self.same
        }

    def __str__(self) -> str:
        lines = [
            f"A  {self.a} ({self.formats[0]} layout, {base_name(self.hosts[0])})",
            f"B  {self.b} ({self.formats[1]} layout, {base_name(self.hosts[1])})",
            f"{self.equal} tensors are equal to the bit, {len(self.changed)} differ, "
            f"{len(self.only_a)} are only in A, {len(self.only_b)} only in B",
        ]
        worst = sorted(self.changed, key=lambda change: -(change.relative or float("inf")))
        listed = [(change.name, str(change)) for change in worst]
        listed += [(name, "only in A") for name in self.only_a]
        listed += [(name, "only in B") for name in self.only_b]
        lines += rows(listed[:MAX_LISTED])
        if len(listed) > MAX_LISTED:
            lines.append(f"  and {len(listed) - MAX_LISTED} more; --json has all")
        return as_text(lines)


def diff(a: Location, b: Location, base: Location | None = None) -> Difference:
    """Compare two files, folders or Hub files by the names of the standard layout.

    `base` gives the sites of an unpublished base. Raises NotFoundError, OptionError, and
    AdapterFileError if one of them is not an adapter; damaged ones are compared as far as they go.
    """
    spec = None
    if base is not None:
        from imageprompt.checkpoint.identify.base_config import open_base

        spec = open_base(base).spec
    sides = [_Side.open(path, spec) for path in (a, b)]
    ours, theirs = (side.tensors for side in sides)
    changed, equal = [], 0
    for name in sorted(ours.keys() & theirs.keys()):
        if same_bytes(ours[name], theirs[name]):
            equal += 1
        else:
            changed.append(_change(name, ours[name], theirs[name]))
    return Difference(
        a=sides[0].path,
        b=sides[1].path,
        formats=(sides[0].format, sides[1].format),
        hosts=(sides[0].host, sides[1].host),
        equal=equal,
        changed=tuple(changed),
        only_a=tuple(sorted(ours.keys() - theirs.keys())),
        only_b=tuple(sorted(theirs.keys() - ours.keys())),
    )


@dataclass(frozen=True)
class _Side:
    path: str
    format: str
    host: str
    tensors: dict[str, StoredTensor]

    @classmethod
    def open(cls, path: Location, base: HostSpec | None) -> _Side:
        source = open_source(locate_source(path))
        found = identify(source, base)
        return cls(str(source.path), found.format, found.host, canonical(found.parts))


def _change(name: str, a: StoredTensor, b: StoredTensor) -> TensorChange:
    """Both tensors read side by side, in float64."""
    common: dict[str, Any] = {"shapes": (a.shape, b.shape), "dtypes": (a.dtype, b.dtype)}
    if a.shape != b.shape:
        return TensorChange(name=name, **common)
    import numpy as np

    largest = distance = aa = bb = ab = 0.0
    for x, y in zip(_values(a), _values(b), strict=True):
        gap = np.abs(x - y)
        largest = float(np.maximum(largest, gap.max()))
        distance += float(gap @ gap)
        aa, bb, ab = aa + float(x @ x), bb + float(y @ y), ab + float(x @ y)
    if not np.isfinite((largest, distance, aa, bb)).all():
        return TensorChange(name=name, **common)
    return TensorChange(
        name=name,
        **common,
        max_abs=largest,
        relative=(distance / aa) ** 0.5 if aa else None,
        cosine=ab / (aa * bb) ** 0.5 if aa and bb else None,
    )


_COUNT = CHUNK // 8  # values at a time, the same number for both dtypes


def _values(tensor: StoredTensor) -> Iterator[NDArray[np.float64]]:
    """Its values as float64, `_COUNT` at a time."""
    import numpy as np

    size = ITEM_SIZES[tensor.dtype]
    for piece in pieces(tensor):
        for start in range(0, len(piece), _COUNT * size):
            yield _decoded(piece[start : start + _COUNT * size], tensor.dtype).astype(np.float64)


_PLAIN = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2"}


def _decoded(data: bytes, dtype: str) -> NDArray[Any]:
    """bfloat16 is float32 without its lower half; float8 is decoded by torch."""
    import numpy as np

    if dtype == "BF16":
        wide = np.frombuffer(data, "<u2").astype(np.uint32) << 16
        return wide.view(np.float32)
    if dtype in _PLAIN:
        return np.frombuffer(data, _PLAIN[dtype])
    import torch

    from imageprompt.checkpoint.torch_io import torch_dtype

    return torch.frombuffer(bytearray(data), dtype=torch_dtype(dtype)).float().numpy()
