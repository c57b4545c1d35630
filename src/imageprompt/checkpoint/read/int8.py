"""int8 weights of our own files: beside `X` lies `X_scale`, float32, one for each row.

Whoever reads tensors sees them as the float32 that they stand for, and never sees the scales.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from math import prod

from imageprompt.checkpoint.read.stored_tensor import StoredTensor, TensorSource

SCALE = "_scale"
INT8, WIDE = "I8", "F32"
MAX_NUMBERS = 2**26  # of a matrix; the largest of FLUX Redux has 5.1e7
MAX_ROWS = 2**20  # whose scales are read at once
AS_INT8 = ", int8"
"""How the container of such a file ends."""


def with_scales(source: TensorSource) -> TensorSource:
    """The same source with its int8 matrices as float32; others without a scale stay whole."""
    scaled = {name: name + SCALE for name in source.tensors if _has_scale(source.tensors, name)}
    if not scaled:
        return source
    scales = set(scaled.values())
    tensors = {
        name: _dequantised(tensor, source.tensors[scaled[name]]) if name in scaled else tensor
        for name, tensor in source.tensors.items()
        if name not in scales
    }
    note = f"{len(scaled)} matrices are int8 with a scale for each row: read as float32"
    container, notes = source.container + AS_INT8, (*source.notes, note)
    return replace(source, tensors=tensors, container=container, notes=notes)


def _has_scale(tensors: Mapping[str, StoredTensor], name: str) -> bool:
    tensor, scale = tensors[name], tensors.get(name + SCALE)
    return (
        scale is not None
        and tensor.dtype == INT8
        and len(tensor.shape) == 2
        and prod(tensor.shape) <= MAX_NUMBERS
        and tensor.shape[0] <= MAX_ROWS
        and (scale.dtype, scale.shape) == (WIDE, tensor.shape[:1])
    )


def _dequantised(tensor: StoredTensor, scale: StoredTensor) -> StoredTensor:
    return replace(
        tensor,
        dtype=WIDE,
        storage=(tensor.storage, scale.storage),
        read_slowly=partial(_products, tensor, scale),
    )


def _products(tensor: StoredTensor, scale: StoredTensor, size: int) -> Iterator[memoryview]:
    """Whole numbers times the scale of their row, in float32, in pieces of at most `size` bytes."""
    import numpy as np

    rows, columns = tensor.shape
    if not columns:
        return
    scales = np.frombuffer(scale.read(), "<f4")
    whole = np.frombuffer(tensor.read(), np.int8).reshape(rows, columns)
    step, wide = max(1, size // (4 * columns)), max(1, size // 4)  # one of them is the whole side
    for start in range(0, rows, step):
        for left in range(0, columns, wide):
            part = whole[start : start + step, left : left + wide]
            content = memoryview(
                (part * scales[start : start + step, None]).astype("<f4").tobytes()
            )
            yield from (content[at : at + size] for at in range(0, len(content), size))
