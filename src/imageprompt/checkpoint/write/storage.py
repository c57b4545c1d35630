"""Stored tensors into torch's memory, and torch's tensors into files.

What a file holds is told by `open_source`: no pickle is ever run, here or there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from imageprompt.checkpoint.read.open import open_source
from imageprompt.checkpoint.read.pickle.torch_objects import DTYPES
from imageprompt.checkpoint.tensor_bytes import Weights
from imageprompt.core.atomic_files import write_atomically
from imageprompt.core.errors import AdapterFileError, NotFoundError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
_DTYPES = {ours: torchs for torchs, ours in DTYPES.items()}


@dataclass(frozen=True)
class Stored:
    """What a file holds: tensors by flat dotted name, and its safetensors metadata."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)


def read_file(path: Path) -> Stored:
    """All tensors of a file or checkpoint folder, on the CPU, in the file's dtypes.

    Raises NotFoundError for a missing file and AdapterFileError for anything that does not hold
    whole tensors.
    """
    source = open_source(path)
    tensors = {name: tensor_of(stored) for name, stored in source.tensors.items()}
    return Stored(tensors, dict(source.metadata))


def tensor_of(weights: Weights) -> Tensor:
    """One stored tensor, read into memory of its own."""
    import torch

    dtype = torch_dtype(weights.dtype)
    content = bytearray().join(weights.chunks())
    if not content:  # torch takes no empty buffers
        return torch.empty(weights.shape, dtype=dtype)
    return torch.frombuffer(content, dtype=dtype).reshape(weights.shape)


def dtype_name(name: str) -> str:
    """A dtype of files in torch's words: "F16" is float16."""
    return _DTYPES.get(name, name)


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a dtype of files."""
    import torch

    dtype: torch.dtype = getattr(torch, dtype_name(name))
    return dtype


def write_file(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write atomically; `.safetensors` flat with metadata, `.bin` nested one level by prefix."""
    import torch
    from safetensors.torch import save_file

    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    if not path.parent.is_dir():
        raise NotFoundError(str(path.parent), reason="no such folder", hint="Create it first.")
    if path.suffix == ".safetensors":
        with write_atomically(path) as temporary:
            save_file(whole, temporary, dict(metadata))
    elif path.suffix in PICKLE_SUFFIXES:
        with write_atomically(path) as temporary:
            torch.save(nest(whole), temporary)
    else:
        raise AdapterFileError(
            str(path), reason="an adapter file ends in .safetensors or .bin", hint="Rename it."
        )


def nest(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """A dictionary for each part, the name up to its first dot: the standard pickle."""
    nested: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        nested.setdefault(part, {})[rest] = tensor
    return nested
