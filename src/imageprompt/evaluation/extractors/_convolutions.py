"""Convolutional networks that are computed straight from the tensors of a published file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch.nn.functional as F

if TYPE_CHECKING:
    from torch import Tensor


MAX_KERNEL = 11  # AlexNet's


class Convolutions:
    """Tensors by name, and the layers that they stand for.

    Raises KeyError for a missing one, ValueError for a kernel of no published network.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors

    def conv(
        self, x: Tensor, name: str, *, stride: int = 1, padding: int | None = None, groups: int = 1
    ) -> Tensor:
        """Convolution with or without a bias; padded so that the size stays, if not stated."""
        weight = self.tensors[f"{name}.weight"]
        height, width = weight.shape[2:]
        if max(height, width) > MAX_KERNEL:
            raise ValueError(f"{name} has a kernel of {height} x {width}")
        pad = (height // 2, width // 2) if padding is None else padding
        bias = self.tensors.get(f"{name}.bias")
        return F.conv2d(x, weight, bias, stride=stride, padding=pad, groups=groups)

    def norm(self, x: Tensor, name: str, eps: float = 1e-5) -> Tensor:
        """Batch normalisation by the stored mean and variance."""
        mean, variance, weight, bias = (
            self.tensors[f"{name}.{part}"]
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, variance, weight, bias, eps=eps)
