"""Stored weights in another precision, cast piece by piece on the way; this is where torch is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING

from imageprompt.checkpoint.stored import CHUNK, ITEM_SIZES, StoredTensor
from imageprompt.checkpoint.values import Weights, pieces
from imageprompt.errors import AdapterFileError, OptionError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

WRITABLE = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"} | {
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}
"""What torch calls the float dtypes of files."""
_WHOLE = {"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8"} | {
    "BOOL": "bool"
}


def resolve_dtype(name: str) -> str:
    """The name in files of a dtype that can be asked for. Raises OptionError."""
    plain = str(name).removeprefix("torch.")
    if plain in WRITABLE:
        return WRITABLE[plain]
    near = get_close_matches(plain, WRITABLE, n=1)
    raise OptionError(
        f"dtype {name!r}",
        rule=f"not one of {', '.join(WRITABLE)}",
        remedy=f"Did you mean {near[0]}?" if near else "Choose one of these.",
    )


@dataclass(frozen=True)
class Cast:
    """A tensor in a file as it will be in another dtype."""

    stored: StoredTensor
    dtype: str

    @classmethod
    def of(cls, stored: StoredTensor, dtype: str) -> Weights:
        """`stored` itself where nothing has to change: whole numbers, or the dtype it has."""
        return cls(stored, dtype) if stored.dtype in NAMES and stored.dtype != dtype else stored

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape

    @property
    def nbytes(self) -> int:
        return self.stored.nbytes // ITEM_SIZES[self.stored.dtype] * ITEM_SIZES[self.dtype]

    def chunks(self, size: int = CHUNK) -> Iterator[memoryview]:
        """Rounded to nearest even; beyond its range a value becomes infinite."""
        import torch

        for piece in pieces(self.stored):
            values = torch.frombuffer(bytearray(piece), dtype=_torch_dtype(self.stored.dtype))
            made = values.to(_torch_dtype(self.dtype)).view(torch.uint8)
            whole = memoryview(made.numpy().tobytes())
            yield from (whole[start : start + size] for start in range(0, len(whole), size))


def as_tensor(weights: Weights) -> torch.Tensor:
    """All of it in memory, as torch has it."""
    import torch

    content = bytearray().join(weights.chunks())
    flat = torch.frombuffer(content, dtype=torch.uint8) if content else torch.empty(0).byte()
    return flat.view(_torch_dtype(weights.dtype)).reshape(weights.shape)


def as_float32(data: bytes, dtype: str) -> NDArray[np.float32]:
    """Values of a dtype that numpy lacks."""
    import torch

    return torch.frombuffer(bytearray(data), dtype=_torch_dtype(dtype)).float().numpy()


def _torch_dtype(name: str) -> torch.dtype:
    """Raises AdapterFileError for dtypes that no weights are kept in."""
    import torch

    if name not in NAMES | _WHOLE:
        raise AdapterFileError(
            f"a tensor of dtype {name}",
            rule="weights are float, or whole numbers of the common widths",
            remedy="Is this an adapter?",
        )
    dtype: torch.dtype = getattr(torch, (NAMES | _WHOLE)[name])
    return dtype
