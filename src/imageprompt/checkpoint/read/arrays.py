"""Plain arrays of numbers from .npy, JSON lists, safetensors and torch files; no pickle is run.

Sizes are taken from headers and checked against a limit before any number is read.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imageprompt.checkpoint.read.file import looks_like_pickle
from imageprompt.checkpoint.read.pickle.machine import Opaque
from imageprompt.checkpoint.read.pickle.torch_legacy import read_torch_legacy
from imageprompt.checkpoint.read.pickle.torch_objects import TensorView
from imageprompt.checkpoint.read.pickle.torch_tensors import UnpickledFile
from imageprompt.checkpoint.read.pickle.torch_zip import read_torch_zip
from imageprompt.checkpoint.read.raw import RawFile, refuse
from imageprompt.checkpoint.read.refusals import explain_bytes
from imageprompt.checkpoint.read.safetensors import looks_like_safetensors, read_safetensors
from imageprompt.checkpoint.read.stored_tensor import StoredTensor

Array = NDArray[np.float32]
_NUMPY = b"\x93NUMPY"
_JSON_DIGITS = 32  # characters per number in JSON, with its comma and spaces
_KINDS = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}  # numpy has no BF16
_MAX_DEPTH = 4  # of nested lists and tables in a torch file


def read_arrays(path: Path, max_numbers: int) -> list[Array]:
    """The arrays of floats in a file, at most `max_numbers` numbers in all, as float32.

    Raises NotFoundError, or AdapterFileError that says what the file is instead.
    """
    with RawFile(path) as raw:
        start = raw.read_at(0, min(raw.size, 512))
        if looks_like_safetensors(start, raw.size):
            stored = list(read_safetensors(raw).tensors.values())
            _check_count(path, sum(prod(tensor.shape) for tensor in stored), max_numbers)
            return [_floats(path, tensor) for tensor in stored]
        if start.startswith(_NUMPY):
            return [_from_npy(raw, max_numbers)]
        if start.lstrip()[:1] == b"[":
            return [_from_json(raw, max_numbers)]
        if start[:2] == b"PK":
            return _from_torch(path, read_torch_zip(raw), max_numbers)
        if looks_like_pickle(start):
            return _from_torch(path, read_torch_legacy(raw), max_numbers)
        if raw.size == 0:
            refuse(path, "the file is empty")
        explain_bytes(path, start, raw.size)


def _from_npy(raw: RawFile, max_numbers: int) -> Array:
    content = raw.read_at(0, min(raw.size, max_numbers * 8 + 2**16))
    stream = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
        header = np.lib.format.read_array_header_1_0
        header = header if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, kind = header(stream)
    except Exception as error:  # numpy parses it as Python literals, with errors of every kind
        refuse(raw.path, f"the header is damaged ({type(error).__name__})")
    if kind.kind != "f" or kind.itemsize > 8:
        refuse(raw.path, f"it contains {kind.name[:40]}, not floating-point numbers")
    _check_count(raw.path, prod(shape), max_numbers)
    if stream.tell() + prod(shape) * kind.itemsize != raw.size:
        refuse(raw.path, "the file is cut off, or something follows its numbers")
    found: NDArray[Any] = np.load(io.BytesIO(content), allow_pickle=False)
    return found.astype(np.float32)


def _from_json(raw: RawFile, max_numbers: int) -> Array:
    limit = max_numbers * _JSON_DIGITS
    if raw.size > limit:
        refuse(raw.path, f"{raw.size} bytes of JSON; the limit is {limit}")
    try:
        return np.asarray(json.loads(raw.read_at(0, raw.size)), np.float32)
    except (ValueError, TypeError, RecursionError):
        refuse(raw.path, "not a JSON list of numbers, or of lists of equal length")


def _from_torch(path: Path, unpickled: UnpickledFile, max_numbers: int) -> list[Array]:
    found = list(_leaves(path, unpickled.value))
    sizes = [one.shape if isinstance(one, TensorView) else one.state[1] for one in found]
    _check_count(path, sum(prod(shape) for shape in sizes), max_numbers)
    return [
        _floats(path, unpickled.locate(one))
        if isinstance(one, TensorView)
        else _from_numpy(path, one)
        for one in found
    ]


def _leaves(path: Path, value: Any, depth: int = 0) -> Iterator[Any]:
    """The tensors and numpy arrays in a torch file's value, which may be a list or a table."""
    if isinstance(value, TensorView) or _is_numpy(value):
        yield value
    elif isinstance(value, dict | list | tuple) and depth < _MAX_DEPTH:
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _leaves(path, inner, depth + 1)
    else:
        refuse(path, "it contains something other than tensors")


def _is_numpy(value: Any) -> bool:
    """Is it a numpy array as torch.save writes it, with a shape of natural numbers?"""
    if not isinstance(value, Opaque) or not value.name.endswith("multiarray._reconstruct"):
        return False
    state = value.state
    shape = state[1] if isinstance(state, tuple) and len(state) == 5 else None
    return isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)


def _from_numpy(path: Path, array: Any) -> Array:
    """An array as the reference's own training scripts save it."""
    _, shape, kind, by_column, content = array.state
    state: Any = kind.state if isinstance(kind, Opaque) else None
    name = kind.args[0] if isinstance(kind, Opaque) and kind.args else None
    order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
    if isinstance(content, Opaque) and content.name == "_codecs.encode" and content.args:
        content = content.args[0]  # bytes, as protocol 2 writes them
    if isinstance(content, str):
        content = content.encode("latin1", "replace")
    item = {"f2": 2, "f4": 4, "f8": 8}.get(str(name))
    plain = item and order in ("<", ">") and isinstance(content, bytes)
    if not plain or len(content) != prod(shape) * item:
        refuse(path, "it contains a numpy array that is damaged or not of floating-point numbers")
    values = np.frombuffer(content, f"{order}{name}").astype(np.float32)
    return values.reshape(shape, order="F" if by_column is True else "C")


def _floats(path: Path, tensor: StoredTensor) -> Array:
    if tensor.dtype == "BF16":  # the upper half of a float32
        halves = np.frombuffer(tensor.read(), "<u2").astype(np.uint32)
        return (halves << 16).view(np.float32).reshape(tensor.shape)
    if tensor.dtype not in _KINDS:
        refuse(path, f"it contains {tensor.dtype}, not floating-point numbers")
    values = np.frombuffer(tensor.read(), _KINDS[tensor.dtype])
    return values.astype(np.float32).reshape(tensor.shape)


def _check_count(path: Path, count: int, max_numbers: int) -> None:
    if count > max_numbers:
        refuse(path, f"it contains {count} numbers; the limit is {max_numbers}")
