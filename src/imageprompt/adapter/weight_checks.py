"""The weights of a file at the door: finite, and in a precision that layers compute in."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from imageprompt.core.errors import AdapterFileError


def check_finite(source: str, weights: Mapping[str, Tensor]) -> None:
    """Raises AdapterFileError for NaN or infinity, with their number and the first tensor's name.

    One sum per tensor; only where that is not finite are the numbers looked at one by one.
    """
    wrong = {name: count for name, weight in weights.items() if (count := _not_finite(weight))}
    if wrong:
        total = sum(weights[name].numel() for name in wrong)
        raise AdapterFileError(
            source,
            reason=f"{sum(wrong.values())} of {total} numbers are NaN or infinite in "
            f"{len(wrong)} of {len(weights)} tensors, the first is {next(iter(wrong))}",
            hint="Training has diverged, or the file is damaged: use an earlier checkpoint, or "
            "download it again.",
        )


def computable(
    source: str, weights: Mapping[str, Tensor], dtype: torch.dtype | None
) -> dict[str, Tensor]:
    """The weights with float8 as `dtype`, by default float16, which holds each of its numbers.

    Warns about float8; raises AdapterFileError for whole numbers, whose scales a file would need.
    """
    whole = [name for name, weight in weights.items() if not weight.dtype.is_floating_point]
    if whole:
        raise AdapterFileError(
            source,
            reason=f"{len(whole)} of {len(weights)} tensors are {weights[whole[0]].dtype} without "
            f"scales, the first is {whole[0]}",
            hint="Use the file it was quantised from.",
        )
    small = [name for name, weight in weights.items() if weight.dtype.itemsize == 1]
    if small:
        wide = dtype or torch.float16
        warnings.warn(
            f"{source}: {len(small)} of {len(weights)} tensors are "
            f"{str(weights[small[0]].dtype).removeprefix('torch.')}, read as "
            f"{str(wide).removeprefix('torch.')}; the precision they have lost stays lost",
            stacklevel=4,
        )
        return {**weights, **{name: weights[name].to(wide) for name in small}}
    return dict(weights)


def _not_finite(weight: Tensor) -> int:
    if not weight.dtype.is_floating_point:
        return 0
    if weight.dtype.itemsize == 1:
        weight = weight.half()
    if torch.isfinite(weight.sum()):  # torch sums half precision in float32, and fast
        return 0
    return int((~torch.isfinite(weight)).sum())  # 0 where only the sum has overflown
