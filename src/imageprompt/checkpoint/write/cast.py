"""Stored weights in another precision, cast piece by piece on the way; this is where torch is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches

from imageprompt.checkpoint.read.stored_tensor import CHUNK, ITEM_SIZES, StoredTensor
from imageprompt.checkpoint.tensor_bytes import FLOATS, Weights, pieces
from imageprompt.checkpoint.write.storage import torch_dtype
from imageprompt.core.errors import OptionError

WRITABLE = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def resolve_dtype(name: str) -> str:
    """The name in files of a dtype that can be asked for. Raises OptionError."""
    plain = str(name).removeprefix("torch.")
    if plain in WRITABLE:
        return WRITABLE[plain]
    near = get_close_matches(plain, WRITABLE, n=1)
    raise OptionError(
        f"dtype {name!r}",
        reason=f"not one of {', '.join(WRITABLE)}",
        hint=f"Did you mean {near[0]}?" if near else "Choose one of these.",
    )


@dataclass(frozen=True)
class Cast:
    """A tensor in a file as it will be in another dtype."""

    stored: StoredTensor
    dtype: str

    @classmethod
    def of(cls, stored: StoredTensor, dtype: str) -> Weights:
        """`stored` itself where nothing has to change: whole numbers, or the dtype it has."""
        return cls(stored, dtype) if stored.dtype in FLOATS - {dtype} else stored

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape

    @property
    def nbytes(self) -> int:
        return self.stored.nbytes // ITEM_SIZES[self.stored.dtype] * ITEM_SIZES[self.dtype]

    def chunks(self, size: int = CHUNK) -> Iterator[memoryview]:
        """Rounded to nearest even; beyond its range a value becomes infinite."""
        import torch

        before, after = torch_dtype(self.stored.dtype), torch_dtype(self.dtype)
        for piece in pieces(self.stored):
            made = torch.frombuffer(bytearray(piece), dtype=before).to(after)
            whole = memoryview(made.view(torch.uint8).numpy().tobytes())
            yield from (whole[start : start + size] for start in range(0, len(whole), size))
