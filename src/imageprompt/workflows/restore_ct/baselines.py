"""What a restoration has to beat: non-local means, which needs no training."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

PATCH, REACH = 5, 6
"""Side of the patches that are compared, and how far apart they may lie, in pixels."""
_CUT = 5.0  # the exponent beyond which a patch counts nothing


def non_local_means(x: Tensor, strength: float, sigma: float = 0.0) -> Tensor:
    """Each pixel as the mean of those with a like patch around them, [n, h, w] -> the same.

    Patches weigh exp(-max(d² - 2 sigma², 0) / strength²), d² being the mean squared difference of
    their pixels; borders are mirrored. `strength` and `sigma`, the noise, are in the unit of `x`.
    """
    border = REACH + PATCH // 2
    padded = F.pad(x[:, None], (border,) * 4, mode="reflect")
    rows, columns = x.shape[-2] + PATCH - 1, x.shape[-1] + PATCH - 1
    own = padded[..., REACH : REACH + rows, REACH : REACH + columns]
    half = PATCH // 2
    at = torch.arange(-half, half + 1, dtype=x.dtype)
    line = torch.exp(-(at**2) / (2 * ((PATCH - 1) / 4) ** 2))
    weights_of_patch = (line[:, None] * line / line.sum() ** 2)[None, None]
    total, weights = torch.zeros_like(x[:, None]), torch.zeros_like(x[:, None])
    for down in range(2 * REACH + 1):
        for right in range(2 * REACH + 1):
            other = padded[..., down : down + rows, right : right + columns]
            distance = F.conv2d((own - other).square(), weights_of_patch)
            unlike = (distance - 2 * sigma**2).clamp(min=0) / strength**2
            weight = torch.exp(-unlike) * (unlike <= _CUT)
            total += weight * other[..., half : rows - half, half : columns - half]
            weights += weight
    return (total / weights)[:, 0]


def estimated_noise(x: Tensor) -> float:
    """Standard deviation of the noise of pictures [n, h, w]: from the median of the second
    differences of their neighbours."""
    corners = x[:, :-2, :-2] + x[:, 2:, 2:] + x[:, :-2, 2:] + x[:, 2:, :-2]
    sides = x[:, 1:-1, :-2] + x[:, 1:-1, 2:] + x[:, :-2, 1:-1] + x[:, 2:, 1:-1]
    second = corners - 2 * sides + 4 * x[:, 1:-1, 1:-1]
    return float(second.abs().median() / 0.6745 / 6)
