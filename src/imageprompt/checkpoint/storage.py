"""Bytes to named tensors and back: safetensors and pickles, told by content, never by name.

Pickles are read with torch's restricted unpickler only; there is no fall-back.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from imageprompt.errors import AdapterFileError, NotFoundError
from imageprompt.files import write_atomically

if TYPE_CHECKING:
    from torch import Tensor

MAX_HEADER = 100 * 2**20  # the limit of safetensors itself
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
_FOREIGN = (
    (b"version https://git-lfs", "it is a git-LFS pointer", "Fetch the file: git lfs pull."),
    (b"<!doctype html", "it is a web page", "Download the file itself, not its page."),
    (b"<html", "it is a web page", "Download the file itself, not its page."),
    (b"\x89png", "it is a picture", "Give it as the reference instead."),
    (b"\xff\xd8\xff", "it is a picture", "Give it as the reference instead."),
    (b"gguf", "it is a GGUF model", "Give an adapter in .safetensors or .bin."),
)


@dataclass(frozen=True)
class Stored:
    """What a file holds: tensors by flat dotted name, and its safetensors metadata."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)


def read_file(path: Path) -> Stored:
    """All tensors of a file, on the CPU, in the file's dtypes.

    Raises NotFoundError for a missing file and AdapterFileError for anything that is not whole
    safetensors or a pickle of tensors.
    """
    start, size = _peek(path)
    if start[:2] == b"PK" or start[:1] == b"\x80":
        return _read_pickle(path)
    lowered = start.lstrip().lower()
    for magic, what, remedy in _FOREIGN:
        if lowered.startswith(magic):
            _refuse(path, what, remedy)
    return _read_safetensors(path, start, size)


def write_file(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write atomically; `.safetensors` flat with metadata, `.bin` nested one level by prefix."""
    import torch
    from safetensors.torch import save_file

    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    if not path.parent.is_dir():
        raise NotFoundError(str(path.parent), rule="no such folder", remedy="Create it first.")
    if path.suffix == ".safetensors":
        with write_atomically(path) as temporary:
            save_file(whole, temporary, dict(metadata))
    elif path.suffix in PICKLE_SUFFIXES:
        with write_atomically(path) as temporary:
            torch.save(_nest(whole), temporary)
    else:
        raise AdapterFileError(
            str(path), rule="an adapter file ends in .safetensors or .bin", remedy="Rename it."
        )


def _peek(path: Path) -> tuple[bytes, int]:
    try:
        with path.open("rb") as file:
            start = file.read(64)
        size = path.stat().st_size
    except FileNotFoundError:
        raise NotFoundError(str(path), rule="no such file", remedy="Check the path.") from None
    except IsADirectoryError:
        _refuse(path, "it is a folder", "Give the adapter file inside it.")
    except OSError as error:
        _refuse(path, f"it cannot be read ({error.strerror})", "Check its permissions.")
    if size < 8:
        _refuse(path, f"it has {size} bytes", "Download it again.")
    return start, size


def _read_safetensors(path: Path, start: bytes, size: int) -> Stored:
    from safetensors import SafetensorError, safe_open

    (length,) = struct.unpack("<Q", start[:8])
    if start[8:9] != b"{" or length > size - 8:
        cut = start[8:9] == b"{"
        _refuse(path, "its header is cut off" if cut else "it is no safetensors file and no pickle")
    if length > MAX_HEADER:
        _refuse(path, f"its header claims {length} bytes; the limit is {MAX_HEADER}")
    _check_names(path, length)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return Stored(tensors, file.metadata() or {})
    except (SafetensorError, ValueError, OSError) as error:
        _refuse(path, f"it is damaged ({error})", "Download it again.")


def _check_names(path: Path, length: int) -> None:
    """Refuse duplicate names, which the safetensors reader would let the last one win."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = dict(pairs)
        if len(names) != len(pairs):
            _refuse(path, "its header names a tensor twice", "Download it again.")
        return names

    with path.open("rb") as file:
        file.seek(8)
        try:
            json.loads(file.read(length), object_pairs_hook=unique)
        except (ValueError, RecursionError):
            _refuse(path, "its header is no JSON", "Download it again.")


def _read_pickle(path: Path) -> Stored:
    import pickle

    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        _refuse(
            path,
            "its pickle holds more than tensors, or is damaged",
            "Pickles can run code, so it is not opened; use a .safetensors file.",
        )
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        _refuse(path, f"it is damaged ({str(error).splitlines()[0] if str(error) else 'cut off'})")
    tensors: dict[str, Tensor] = {}
    _flatten(path, content, "", tensors)
    return Stored(tensors)


def _flatten(path: Path, content: object, prefix: str, into: dict[str, Tensor]) -> None:
    import torch

    if not isinstance(content, dict):
        _refuse(path, f"{prefix or 'its content'} is a {type(content).__name__}, not tensors")
    for name, value in content.items():
        full = f"{prefix}{name}"
        if isinstance(value, torch.Tensor):
            into[full] = value
        else:
            _flatten(path, value, f"{full}.", into)


def _nest(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    nested: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        nested.setdefault(part, {})[rest] = tensor
    return nested


def _refuse(path: Path, why: str, remedy: str = "Give an image-prompt adapter file.") -> NoReturn:
    raise AdapterFileError(f"{path}", rule=f"not an adapter file: {why}", remedy=remedy) from None
