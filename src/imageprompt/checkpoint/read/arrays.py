"""Plain arrays of numbers from .npy, JSON lists, safetensors and torch files; no pickle is run.

Sizes are taken from headers and checked against a limit before any number is read.
"""

from __future__ import annotations

import re
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
from imageprompt.checkpoint.read.stored_tensor import StoredTensor, is_shape
from imageprompt.core.untrusted import Budget, LimitError, parse_json

Array = NDArray[np.float32]
_NUMPY = b"\x93NUMPY"
_JSON_DIGITS = 32  # characters per number in JSON, with its comma and spaces
_NPY_HEADER = re.compile(
    r"\s*\{\s*'descr':\s*'(?P<kind>[<>|=]?\w{1,16})',\s*'fortran_order':\s*(?P<order>True|False),"
    r"\s*'shape':\s*\((?P<shape>[\d,L ]*)\)\s*,?\s*\}\s*"
)  # as every program writes it; Python's parser is not for strangers
_MAX_NPY_HEADER = 4096  # bytes; numpy pads it to 128
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
            return _from_torch(raw, read_torch_zip(raw), max_numbers)
        if looks_like_pickle(start):
            return _from_torch(raw, read_torch_legacy(raw), max_numbers)
        if raw.size == 0:
            refuse(path, "the file is empty")
        explain_bytes(path, start, raw.size)


def _from_npy(raw: RawFile, max_numbers: int) -> Array:
    start = len(_NUMPY) + 2
    major = raw.read_at(len(_NUMPY), 1)[0] if raw.size > start else 0
    size = {1: 2, 2: 4, 3: 4}.get(major, 0)
    length = int.from_bytes(raw.read_at(start, size), "little") if raw.size > start + size else 0
    begin = start + size + length
    if not 0 < length <= _MAX_NPY_HEADER or begin > raw.size:
        refuse(raw.path, "the header is damaged, or too long")
    header = _NPY_HEADER.fullmatch(raw.read_at(start + size, length).decode("latin1"))
    if header is None:
        refuse(raw.path, "the header is damaged, or not one of numbers")
    if not re.fullmatch("[<>=]f[248]", header["kind"]):
        refuse(raw.path, f"it contains {header['kind']}, not floating-point numbers")
    shape = _npy_shape(raw.path, header["shape"])
    _check_count(raw.path, prod(shape), max_numbers)
    kind = np.dtype(header["kind"])
    if begin + prod(shape) * kind.itemsize != raw.size:
        refuse(raw.path, "the file is cut off, or something follows its numbers")
    values = np.frombuffer(raw.read_at(begin, raw.size - begin), kind).astype(np.float32)
    return values.reshape(shape, order="F" if header["order"] == "True" else "C")


def _npy_shape(path: Path, text: str) -> tuple[int, ...]:
    """ "3, 512" or "512," as numbers; Python 2 wrote an L after each."""
    sizes = (
        [size.strip().removesuffix("L") for size in text.rstrip(" ,").split(",")] if text else []
    )
    shape = [int(n) if n.isdecimal() and len(n) < 19 else None for n in sizes]
    if not is_shape(shape):
        refuse(path, "the header contains no shape, or one beyond any limit")
    return tuple(map(int, sizes))


def _from_json(raw: RawFile, max_numbers: int) -> Array:
    limit = max_numbers * _JSON_DIGITS
    if raw.size > limit:
        refuse(raw.path, f"{raw.size} bytes of JSON; the limit is {limit}")
    budget = Budget(nbytes=limit, items=2 * max_numbers + 16, depth=_MAX_DEPTH, within=raw.budget)
    try:
        return np.asarray(parse_json(raw.read_at(0, raw.size), budget), np.float32)
    except LimitError as error:
        refuse(raw.path, f"too large a JSON list: {error}")
    except (ValueError, TypeError):
        refuse(raw.path, "not a JSON list of numbers, or of lists of equal length")


def _from_torch(raw: RawFile, unpickled: UnpickledFile, max_numbers: int) -> list[Array]:
    path = raw.path
    found = list(_leaves(path, unpickled.value, Budget(items=max_numbers, within=raw.budget)))
    sizes = [one.shape if isinstance(one, TensorView) else one.state[1] for one in found]
    _check_count(path, sum(prod(shape) for shape in sizes), max_numbers)
    return [
        _floats(path, unpickled.locate(one))
        if isinstance(one, TensorView)
        else _from_numpy(path, one)
        for one in found
    ]


def _leaves(path: Path, value: Any, budget: Budget, depth: int = 0) -> Iterator[Any]:
    """The tensors and numpy arrays in a torch file's value, which may be a list or a table.

    A list may contain another one many times: every value takes one item of the budget.
    """
    budget.add()
    if isinstance(value, TensorView) or _is_numpy(value):
        yield value
    elif isinstance(value, dict | list | tuple) and depth < _MAX_DEPTH:
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _leaves(path, inner, budget, depth + 1)
    else:
        refuse(path, "it contains something other than tensors")


def _is_numpy(value: Any) -> bool:
    """Is it a numpy array as torch.save writes it, with a shape of natural numbers?"""
    if not isinstance(value, Opaque) or not value.name.endswith("multiarray._reconstruct"):
        return False
    state = value.state
    shape = state[1] if isinstance(state, tuple) and len(state) == 5 else None
    return isinstance(shape, tuple) and is_shape(shape)


def _from_numpy(path: Path, array: Any) -> Array:
    """An array as the reference's own training scripts save it."""
    _, shape, kind, by_column, content = array.state
    state: Any = kind.state if isinstance(kind, Opaque) else None
    name = kind.args[0] if isinstance(kind, Opaque) and kind.args else None
    item = {"f2": 2, "f4": 4, "f8": 8}.get(name) if isinstance(name, str) else None
    order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
    if isinstance(content, Opaque) and content.name == "_codecs.encode" and content.args:
        content = content.args[0]  # bytes, as protocol 2 writes them
    if isinstance(content, str):
        content = content.encode("latin1", "replace")
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
