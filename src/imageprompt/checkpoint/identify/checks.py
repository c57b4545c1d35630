"""What shapes cannot tell: copies that differ, NaN, constant tensors, weights never trained."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping

from imageprompt.checkpoint.formats import Parts
from imageprompt.checkpoint.identify.base_config import Base
from imageprompt.checkpoint.identify.identify import Identified
from imageprompt.checkpoint.identify.problems import PROJECTOR, SITES, Problem, first
from imageprompt.checkpoint.read.stored_tensor import ITEM_SIZES, StoredTensor
from imageprompt.checkpoint.tensor_bytes import Weights, constant, finite, same_bytes
from imageprompt.core.spec import HostSpec

SAMPLES = 1024  # values compared where two dtypes have to be brought together


def canonical(parts: Parts[StoredTensor]) -> dict[str, StoredTensor]:
    """All tensors of an adapter under the names of the standard layout, whatever its own."""
    flat = {f"{PROJECTOR}.{name}": tensor for name, tensor in parts.projector.items()}
    return flat | {f"{SITES}.{name}": tensor for name, tensor in parts.sites.items()}


def copies_differ(found: Identified) -> list[Problem]:
    """Training checkpoints hold tensors twice; both must be the same to the bit."""
    odd = [
        name
        for name, kept, other in found.copies
        if kept.storage != other.storage and not same_bytes(kept, other)
    ]
    return _problem("copies-differ", odd, "are there twice, and the two copies differ")


def not_finite(tensors: Mapping[str, Weights]) -> list[Problem]:
    odd = [name for name, tensor in tensors.items() if not finite(tensor)]
    return _problem("not-finite", odd, "hold NaN or infinite values")


def constants(tensors: Mapping[str, Weights]) -> list[Problem]:
    """Weight matrices whose values are all the same; vectors start so, and may stay so."""
    odd = [name for name, t in tensors.items() if len(t.shape) > 1 and constant(t)]
    return _problem("constant", odd, "hold one value throughout: they were never trained")


def untrained(found: Identified, base: Base | None) -> list[Problem]:
    """K', V' that still are the base's own to_k, to_v, which they start from.

    The base is the one given, or the frozen one inside a training checkpoint. Fewer than all may
    be on purpose; only an adapter without one trained site is a fault.
    """
    weights = base.weights() if base is not None else None
    spec, denoiser = found.base, found.ignored
    if base is not None and weights is not None:
        spec, denoiser = base.spec, weights.tensors
    pairs = list(_beside(found, spec, denoiser)) if spec is not None else []
    equal = [name for name, ours, theirs in pairs if _equal(ours, theirs)]
    whole = bool(pairs) and len(equal) == len(pairs)
    what = "still are the base's own to_k and to_v: nothing was trained"
    return _problem("untrained", equal if whole else [], what)


def _beside(
    found: Identified, spec: HostSpec, denoiser: Mapping[str, StoredTensor]
) -> Iterator[tuple[str, StoredTensor, StoredTensor]]:
    """K' and the base's K of every site, V' and V, as far as both are there."""
    for site in spec.sites:
        for kind in "kv":
            name = f"{site.file_id}.to_{kind}_ip.weight"
            ours = found.parts.sites.get(name)
            theirs = denoiser.get(f"{site.name}.to_{kind}.weight")
            if ours is not None and theirs is not None:
                yield f"{SITES}.{name}", ours, theirs


def _problem(code: str, names: list[str], what: str) -> list[Problem]:
    if not names:
        return []
    return [Problem(code, f"{len(names)} tensors {what} ({first(names)})")]


def _equal(ours: StoredTensor, theirs: StoredTensor) -> bool:
    """Equal to the bit, or, in two dtypes, the first 1024 values once rounded to the narrower."""
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
    except OverflowError:  # a value beyond half precision: the base has none
        return [float("nan")]
