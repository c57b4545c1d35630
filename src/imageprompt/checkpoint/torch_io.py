"""Between stored tensors and torch: loading, casting, and writing files.

What a file contains is read by `open_source`: no pickle is ever run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from imageprompt.checkpoint.read.file import WEIGHT_SUFFIXES, open_safetensors
from imageprompt.checkpoint.read.open import open_source
from imageprompt.checkpoint.read.stored_tensor import (
    CHUNK,
    ITEM_SIZES,
    TORCH_DTYPES,
    StoredTensor,
    TensorBytes,
    torch_dtype_name,
)
from imageprompt.checkpoint.tensor_bytes import FLOATS, pieces
from imageprompt.core.atomic_files import write_atomically
from imageprompt.core.errors import AdapterFileError, NotFoundError, OptionError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SAFETENSORS = ".safetensors"
ALIGNMENT = 8
INT8_NAME = "int8"
CAST_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


# ── reading ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class LoadedTensors:
    """Tensors in memory by flat dotted name, and the safetensors metadata of their file."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)


def read_file(path: Path, *, container: Literal["any", "safetensors"] = "any") -> LoadedTensors:
    """All tensors of a file or checkpoint folder, on the CPU, in the file's dtypes.

    `container="safetensors"` refuses folders and pickles: for prompts, recipes and styles. Raises
    NotFoundError for a missing file and AdapterFileError for anything that does not contain
    complete tensors.
    """
    source = open_safetensors(path) if container == "safetensors" else open_source(path)
    tensors = {name: tensor_of(stored) for name, stored in source.tensors.items()}
    return LoadedTensors(tensors, dict(source.metadata))


def tensor_of(stored: TensorBytes) -> Tensor:
    """One stored tensor, read into its own memory."""
    import torch

    dtype = torch_dtype(stored.dtype)
    content = bytearray().join(stored.chunks())
    if not content:  # torch takes no empty buffers
        return torch.empty(stored.shape, dtype=dtype)
    return torch.frombuffer(content, dtype=dtype).reshape(stored.shape)


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a safetensors dtype name."""
    import torch

    dtype: torch.dtype = getattr(torch, torch_dtype_name(name))
    return dtype


# ── casting ──────────────────────────────────────────────────────────────────────────────────────


def resolve_cast_dtype(name: str) -> str:
    """The safetensors name of a dtype that weights can be cast to. Raises OptionError."""
    plain = str(name).removeprefix("torch.")
    if plain in CAST_DTYPES:
        return CAST_DTYPES[plain]
    near = get_close_matches(plain, CAST_DTYPES, n=1)
    raise OptionError(
        f"dtype {name!r}",
        reason=f"not one of {', '.join([*CAST_DTYPES, INT8_NAME])}",
        hint=f"Did you mean {near[0]}?" if near else "Choose one of these.",
    )


@dataclass(frozen=True)
class CastTensor:
    """A stored tensor in another dtype, cast piece by piece while it is read."""

    stored: StoredTensor
    dtype: str

    @classmethod
    def of(cls, stored: StoredTensor, dtype: str) -> TensorBytes:
        """`stored` itself if nothing changes: integers, or the dtype that it has."""
        return cls(stored, dtype) if stored.dtype in FLOATS - {dtype} else stored

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape

    @property
    def nbytes(self) -> int:
        return self.stored.nbytes // ITEM_SIZES[self.stored.dtype] * ITEM_SIZES[self.dtype]

    def chunks(self, size: int = CHUNK) -> Iterator[memoryview]:
        """Rounded to nearest even; a value beyond the range of `dtype` becomes infinite."""
        import torch

        before, after = torch_dtype(self.stored.dtype), torch_dtype(self.dtype)
        for piece in pieces(self.stored):
            cast = torch.frombuffer(bytearray(piece), dtype=before).to(after)
            content = memoryview(cast.view(torch.uint8).numpy().tobytes())
            yield from (content[start : start + size] for start in range(0, len(content), size))


@dataclass(frozen=True)
class Int8Rows:
    """A stored matrix as int8: each row over its largest value / 127, rounded to nearest."""

    stored: TensorBytes
    dtype: str = "I8"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape

    @property
    def nbytes(self) -> int:
        return prod(self.shape)

    def chunks(self, size: int = CHUNK) -> Iterator[memoryview]:
        import torch

        weight = tensor_of(self.stored).float()
        whole = (weight / row_scales(weight)[:, None]).round().to(torch.int8)
        return TorchTensor(whole).chunks(size)


@dataclass(frozen=True)
class RowScales:
    """The scales of such a matrix, float32 [rows]."""

    stored: TensorBytes
    dtype: str = "F32"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape[:1]

    @property
    def nbytes(self) -> int:
        return 4 * self.shape[0]

    def chunks(self, size: int = CHUNK) -> Iterator[memoryview]:
        return TorchTensor(row_scales(tensor_of(self.stored).float())).chunks(size)


def row_scales(weight: Tensor) -> Tensor:
    """Largest absolute value of each row / 127; never 0."""
    import torch

    return weight.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / 127


def as_int8(tensors: Mapping[str, StoredTensor]) -> dict[str, TensorBytes]:
    """Every matrix of floats as int8 rows and their scales; vectors stay as they are."""
    from imageprompt.checkpoint.read.int8 import SCALE

    planned: dict[str, TensorBytes] = {}
    for name, tensor in tensors.items():
        if tensor.dtype in FLOATS and len(tensor.shape) == 2:
            planned |= {name: Int8Rows(tensor), name + SCALE: RowScales(tensor)}
        else:
            planned[name] = tensor
    return planned


# ── writing ──────────────────────────────────────────────────────────────────────────────────────


def write_file(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write atomically: `.safetensors` flat with metadata, `.bin` nested one level by prefix.

    Raises NotFoundError for a missing folder, AdapterFileError for any other suffix.
    """
    if not path.parent.is_dir():
        raise NotFoundError(str(path.parent), reason="no such folder", hint="Create it first.")
    if path.suffix == SAFETENSORS:
        with write_atomically(path) as temporary:
            write_safetensors(temporary, torch_tensors(tensors), metadata)
    elif path.suffix in WEIGHT_SUFFIXES:
        with write_atomically(path) as temporary:
            _save_pickle(temporary, nest({name: _on_cpu(one) for name, one in tensors.items()}))
    else:
        raise AdapterFileError(
            str(path), reason="an adapter file ends in .safetensors or .bin", hint="Rename it."
        )


def write_pickle(path: Path, tensors: Mapping[str, TensorBytes], *, nested: bool) -> None:
    """Write a `torch.save` file in place, flat or with a dictionary for each part."""
    loaded = {name: tensor_of(stored) for name, stored in tensors.items()}
    _save_pickle(path, nest(loaded) if nested else loaded)


def _save_pickle(path: Path, content: Mapping[str, object]) -> None:
    """`torch.save`, which says RuntimeError if the disk is full, here OSError."""
    import torch

    try:
        with path.open("wb") as stream:
            torch.save(content, stream)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise


def _on_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()


@dataclass(frozen=True)
class TorchTensor:
    """A tensor of torch, on any device, to be written."""

    tensor: Tensor

    @property
    def dtype(self) -> str:
        return TORCH_DTYPES[str(self.tensor.dtype).removeprefix("torch.")]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def nbytes(self) -> int:
        return self.tensor.nbytes

    def chunks(self, size: int = CHUNK) -> Iterator[memoryview]:
        import torch

        content: Any = _on_cpu(self.tensor).reshape(-1).view(torch.uint8).numpy()
        whole = memoryview(content)
        return (whole[start : start + size] for start in range(0, len(whole), size))


def torch_tensors(tensors: Mapping[str, Tensor]) -> dict[str, TorchTensor]:
    return {name: TorchTensor(tensor.detach()) for name, tensor in tensors.items()}


def write_safetensors(
    path: Path,
    tensors: Mapping[str, TensorBytes],
    metadata: Mapping[str, str],
    on_bytes: Callable[[int], object] = lambda _: None,
) -> None:
    """Write a whole file in place; `on_bytes` is called with the size of every piece of a tensor
    that is written."""
    content = safetensors_content(tensors, metadata)
    with path.open("wb") as file:
        file.write(next(content))  # the header, which counts for nothing
        for chunk in content:
            file.write(chunk)
            on_bytes(len(chunk))


def safetensors_content(
    tensors: Mapping[str, TensorBytes], metadata: Mapping[str, str]
) -> Iterator[bytes | memoryview]:
    """The file, piece by piece.

    Wider types come first, so that every tensor starts at a multiple of its item size.
    """
    order = sorted(tensors, key=lambda name: (-ITEM_SIZES[tensors[name].dtype], name))
    yield _header({name: tensors[name] for name in order}, metadata)
    for name in order:
        yield from tensors[name].chunks()


def _header(tensors: Mapping[str, TensorBytes], metadata: Mapping[str, str]) -> bytes:
    """Length and JSON, padded with spaces so that the data starts at a multiple of 8."""
    table: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + tensor.nbytes
        table[name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def nest(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """A dictionary for each part (the name up to its first dot), as the standard pickle has it."""
    nested: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        nested.setdefault(part, {})[rest] = tensor
    return nested
