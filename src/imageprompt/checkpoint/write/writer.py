"""Writes adapter files: safetensors chunk by chunk without torch, pickles through torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from imageprompt.checkpoint.read.stored_tensor import ITEM_SIZES
from imageprompt.checkpoint.tensor_bytes import Weights
from imageprompt.checkpoint.write.storage import nest, tensor_of

ALIGNMENT = 8


def write_safetensors(
    path: Path,
    tensors: Mapping[str, Weights],
    metadata: Mapping[str, str],
    advance: Callable[[int], object] = lambda _: None,
) -> None:
    """Write a whole file in place; `advance` hears of every chunk written, in bytes.

    Wider types come first, so that every tensor starts at a multiple of its item size.
    """
    order = sorted(tensors, key=lambda name: (-ITEM_SIZES[tensors[name].dtype], name))
    with path.open("wb") as file:
        file.write(_header({name: tensors[name] for name in order}, metadata))
        for name in order:
            for chunk in tensors[name].chunks():
                file.write(chunk)
                advance(len(chunk))


def write_pickle(path: Path, tensors: Mapping[str, Weights], *, nested: bool) -> None:
    """Write `torch.save`'s file in place, flat or with a dictionary for each part."""
    import torch

    whole = {name: tensor_of(weights) for name, weights in tensors.items()}
    torch.save(nest(whole) if nested else whole, path)


def _header(tensors: Mapping[str, Weights], metadata: Mapping[str, str]) -> bytes:
    """Length and JSON, padded with spaces so that the data starts at a multiple of 8."""
    table: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, weights in tensors.items():
        end = offset + weights.nbytes
        table[name] = {
            "dtype": weights.dtype,
            "shape": list(weights.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
