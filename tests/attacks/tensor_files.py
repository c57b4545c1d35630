"""Safetensors files whose header says anything; what they claim to hold is a hole on the disk."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "U8": 1, "BOOL": 1}
Tensors = Mapping[str, tuple[str, tuple[int, ...]]]
"""dtype and shape by name."""


def write(path: Path, tensors: Tensors, metadata: Mapping[str, Any] | None = None) -> Path:
    """A file that is complete, its values 0."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    end = 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + prod(shape) * SIZES[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    return write_raw(path, json.dumps(header), end)


def write_raw(path: Path, header: str | bytes, size: int = 0, *, length: int | None = None) -> Path:
    """This header, which may be no JSON and whose `length` may lie, and a hole of `size` bytes."""
    text = header.encode() if isinstance(header, str) else header
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text) if length is None else length) + text)
        stream.truncate(8 + len(text) + size)
    return path
