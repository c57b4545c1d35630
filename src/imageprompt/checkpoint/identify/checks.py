"""What shapes cannot show: copies that differ, NaN, constant tensors, untrained weights."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from imageprompt.checkpoint.formats import Parts
from imageprompt.checkpoint.identify.identify import Identification
from imageprompt.checkpoint.identify.problems import PROJECTOR, SITES, differing_copies
from imageprompt.checkpoint.read.stored_tensor import (
    ITEM_SIZES,
    StoredTensor,
    TensorBytes,
    dtype_names,
)
from imageprompt.checkpoint.report import Problem, tensors_that
from imageprompt.checkpoint.tensor_bytes import (
    constant,
    finite,
    not_computable,
    not_finite_count,
    same_bytes,
)
from imageprompt.core.spec import HostSpec

if TYPE_CHECKING:
    from imageprompt.checkpoint.identify.base_config import BaseConfig

SAMPLES = 1024  # values compared between two dtypes


def canonical(parts: Parts[StoredTensor]) -> dict[str, StoredTensor]:
    """All tensors of an adapter by their names in the standard layout, whatever its own layout."""
    flat = {f"{PROJECTOR}.{name}": tensor for name, tensor in parts.projector.items()}
    return flat | {f"{SITES}.{name}": tensor for name, tensor in parts.sites.items()}


def copies_differ(found: Identification) -> list[Problem]:
    """Training checkpoints store tensors twice; both copies must be equal to the bit."""
    return differing_copies(found.copies, found.stored_as)


def stored_numbers(tensors: Mapping[str, TensorBytes]) -> tuple[list[Problem], list[str]]:
    """What dtypes mean for loading: whole numbers are a problem, float8 is a note."""
    whole, float8 = not_computable({name: tensor.dtype for name, tensor in tensors.items()})
    kinds = " and ".join(dtype_names(tensors[name] for name in whole))
    what = f"{kinds} without scales, and cannot be loaded"
    problems = _problem("whole-numbers", whole, f"is {what}", f"are {what}")
    small = " and ".join(dtype_names(tensors[name] for name in float8))
    return problems, [f"weights are {small}: loaded as float16"] if float8 else []


def not_finite(tensors: Mapping[str, TensorBytes]) -> list[Problem]:
    names = [name for name, tensor in tensors.items() if not finite(tensor)]
    count = sum(not_finite_count(tensors[name]) for name in names)
    what = f"{count:,} NaN or infinite value{'s' * (count > 1)}"
    return _problem("not-finite", names, f"contains {what}", f"contain {what}")


def constants(tensors: Mapping[str, TensorBytes]) -> list[Problem]:
    """Weight matrices whose values are all the same; vectors start that way, and may stay so."""
    names = [name for name, t in tensors.items() if len(t.shape) > 1 and constant(t)]
    one = "has a single repeated value, so it was never trained"
    several = "have a single repeated value, so they were never trained"
    return _problem("constant", names, one, several)


def untrained(found: Identification, base: BaseConfig | None) -> list[Problem]:
    """K', V' that still equal the base's own to_k, to_v, from which training starts.

    The base is `base`, or the frozen one inside a training checkpoint. Some untrained sites may be
    intended; only an adapter without any trained site is a fault.
    """
    weights = base.weights() if base is not None else None
    spec, denoiser = found.base, found.ignored
    if base is not None and weights is not None:
        spec, denoiser = base.spec, weights.tensors
    pairs = list(_pairs(found, spec, denoiser)) if spec is not None else []
    equal = [name for name, ours, theirs in pairs if _equal(ours, theirs)]
    if not pairs or len(equal) < len(pairs):
        return []
    what = "the base's own to_k and to_v: nothing was trained"
    return _problem("untrained", equal, f"still equals {what}", f"still equal {what}")


def _pairs(
    found: Identification, spec: HostSpec, denoiser: Mapping[str, StoredTensor]
) -> Iterator[tuple[str, StoredTensor, StoredTensor]]:
    """K' with the base's K and V' with its V, at every site where both exist."""
    for site in spec.sites:
        for kind in "kv":
            name = f"{site.file_id}.to_{kind}_ip.weight"
            ours = found.parts.sites.get(name)
            theirs = denoiser.get(f"{site.name}.to_{kind}.weight")
            if ours is not None and theirs is not None:
                yield f"{SITES}.{name}", ours, theirs


def _problem(code: str, names: list[str], one: str, several: str) -> list[Problem]:
    return [Problem(code, tensors_that(names, one, several))] if names else []


def _equal(ours: StoredTensor, theirs: StoredTensor) -> bool:
    """Equal to the bit or, in two dtypes, in the first 1024 values rounded to the narrower one."""
    if ours.shape != theirs.shape:
        return False
    if ours.dtype == theirs.dtype:
        return _start(ours) == _start(theirs) and same_bytes(ours, theirs)
    narrow = min((ours, theirs), key=lambda t: (ITEM_SIZES[t.dtype], t.dtype != "F16")).dtype
    rounded = _rounded(ours, narrow)
    return rounded is not None and rounded == _rounded(theirs, narrow)


def _start(tensor: StoredTensor) -> bytes:
    return bytes(next(tensor.chunks(SAMPLES * ITEM_SIZES[tensor.dtype]), b""))


def _rounded(tensor: StoredTensor, dtype: str) -> list[float] | None:
    """The first values in F32, F16 or BF16, rounded to nearest even; None for other dtypes."""
    data = _start(tensor)
    count = len(data) // ITEM_SIZES[tensor.dtype]
    if tensor.dtype == "BF16":
        data = b"".join(b"\0\0" + data[i : i + 2] for i in range(0, 2 * count, 2))
    code = {"F64": "d", "F32": "f", "BF16": "f", "F16": "e"}.get(tensor.dtype)
    if code is None or dtype not in ("F32", "F16", "BF16"):
        return None
    values = struct.unpack(f"<{count}{code}", data)
    if dtype == "BF16":
        bits = struct.unpack(f"<{count}I", struct.pack(f"<{count}f", *values))
        return [float((b + 0x7FFF + (b >> 16 & 1)) >> 16) for b in bits]
    try:
        code = {"F32": "f", "F16": "e"}[dtype]
        return list(struct.unpack(f"<{count}{code}", struct.pack(f"<{count}{code}", *values)))
    except OverflowError:  # a value beyond half precision, which no base has
        return [float("nan")]
