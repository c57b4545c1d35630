"""The light file, and the standard file that it stands for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imageprompt.checkpoint.identify.light_base import fingerprints
from imageprompt.checkpoint.read.int8 import SCALE
from imageprompt.checkpoint.read.light import DOWN, LIGHT, UP
from imageprompt.checkpoint.torch_io import (
    Int8Rows,
    RowScales,
    TorchTensor,
    write_safetensors,
)
from imageprompt.checkpoint.write import adapter_metadata
from imageprompt.core.atomic_files import write_atomically
from imageprompt.deploy.compress.low_rank import Matrix

if TYPE_CHECKING:
    import torch

    from imageprompt.adapter.adapter import Adapter
    from imageprompt.checkpoint.read.stored_tensor import TensorBytes
    from imageprompt.deploy.compress.search import Choice


def write_light(
    path: Path,
    adapter: Adapter,
    matrices: Mapping[str, Matrix],
    choice: Choice,
    *,
    base: str,
    dtype: torch.dtype | None,
) -> None:
    """`dtype` None is int8 with a scale for each row; vectors are then float16."""
    tensors = {
        name: weight for name, weight in adapter.module.state_dict().items() if name not in matrices
    }
    alone: list[str] = []
    own: dict[str, Any] = {}
    for name, one in matrices.items():
        rank = 0 if one.block in choice.dropped else choice.ranks[name]
        if one.is_whole(rank):
            tensors[name] = one.weight
            continue
        up, down = one.pair(rank)
        stem = name.removesuffix(".weight")
        tensors |= {stem + UP: up, stem + DOWN: down}
        if one.own is None or one.block in choice.dropped:
            alone.append(name)
        else:
            own[name] = one.own
    stated = {"base": base, "alone": alone, "fingerprints": fingerprints(own)}
    metadata = adapter_metadata(adapter.spec, None) | {LIGHT: json.dumps(stated)}
    planned: dict[str, TensorBytes] = {}
    for name, tensor in tensors.items():
        planned |= _stored(name, tensor, dtype)
    with write_atomically(path) as temporary:
        write_safetensors(temporary, planned, metadata)


def _stored(name: str, tensor: Any, dtype: torch.dtype | None) -> dict[str, TensorBytes]:
    import torch

    wide = tensor.detach().float().cpu().contiguous()
    if dtype is None and wide.ndim == 2 and wide.numel():
        source = TorchTensor(wide)
        return {name: Int8Rows(source), name + SCALE: RowScales(source)}
    return {name: TorchTensor(wide.to(dtype or torch.float16))}


def write_expanded(path: Path, light: Path, pipe: Any) -> None:
    """The standard file that other programs read: the light one on its base, in float16."""
    import torch

    from imageprompt.adapter.adapter import Adapter

    whole = Adapter.load(light, base=pipe)
    whole.module.to(torch.float16)
    whole.save(path)
