"""The Inception network of FID: TensorFlow's of 2015, in the file that pytorch-fid publishes.

It is not torchvision's inception_v3: average pools leave the border out, the last block takes a
maximum, and there are 1008 classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import torch.nn.functional as F

from imageprompt.evaluation.extractors._convolutions import Convolutions
from imageprompt.evaluation.extractors._weights import (
    MISFITS,
    Source,
    WeightFile,
    identity,
    misfit,
    published_weights,
)

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from imageprompt.evaluation.metrics.contract import Rows

SIDE = 299
PUBLISHED = "6726825d"
"""Start of the SHA-256 of pt_inception-2015-12-05-6726825d.pth."""
PREPROCESSING = (
    "299x299, aspect ratio not kept, bicubic with antialiasing in float, clamped to 0..255, not "
    "rounded; (x - 128) / 128"
)
Output = Literal["pool3", "logits"]


class Inception:
    """Pictures -> the pooled features before the classes, or the logits without their bias."""

    preprocessing = PREPROCESSING

    def __init__(self, role: str, source: str, output: Output, device: str | None) -> None:
        """Raises NotFoundError, EncoderError."""
        stated = Source.of(source)
        file = WeightFile.open(stated.place)
        self.name = published_weights(role, [file], stated, PUBLISHED)
        self.fingerprint = identity(file.sha256, self.preprocessing, output)
        self._network, self._output, self._device = Network(file.tensors(device)), output, device
        try:
            self.width = self._rows(torch.zeros(1, 3, 96, 96)).shape[1]
        except MISFITS as error:
            raise misfit(role, stated, error) from None

    def encode(self, pictures: Sequence[Image]) -> Rows:
        return self._rows(torch.stack([prepared(picture) for picture in pictures]))

    def _rows(self, pixels: Tensor) -> Rows:
        with torch.no_grad():
            features = self._network.pool3(pixels.to(self._device or "cpu"))
            if self._output == "logits":
                features = features @ self._network.tensors["fc.weight"].T
        rows: Rows = features.cpu().numpy()
        return rows


def prepared(picture: Image) -> Tensor:
    """[3, 299, 299] in about -1..1."""
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float()
    resized = F.interpolate(
        pixels, (SIDE, SIDE), mode="bicubic", align_corners=False, antialias=True
    )
    return (resized[0].clamp(0, 255) - 128) / 128


class Network(Convolutions):
    """Names of layers are those of the file."""

    def pool3(self, x: Tensor) -> Tensor:
        """[n, 3, 299, 299] -> [n, 2048]."""
        x = self._unit(x, "Conv2d_1a_3x3", stride=2, padding=0)
        x = self._unit(x, "Conv2d_2a_3x3", padding=0)
        x = self._unit(x, "Conv2d_2b_3x3")
        x = F.max_pool2d(x, 3, stride=2)
        x = self._unit(x, "Conv2d_3b_1x1")
        x = self._unit(x, "Conv2d_4a_3x3", padding=0)
        x = F.max_pool2d(x, 3, stride=2)
        for name in ("5b", "5c", "5d"):
            x = self._mixed(x, name, ("1x1", ""), ("5x5", "12"), ("3x3dbl", "123"))
        x = self._smaller(x, "6a", ("3x3", ""), ("3x3dbl", "123"))
        for name in ("6b", "6c", "6d", "6e"):
            x = self._mixed(x, name, ("1x1", ""), ("7x7", "123"), ("7x7dbl", "12345"))
        x = self._smaller(x, "7a", ("3x3", "12"), ("7x7x3", "1234"))
        x = self._wide(x, "7b", _mean)
        x = self._wide(x, "7c", _maximum)
        return x.mean((2, 3))

    def _unit(self, x: Tensor, name: str, *, stride: int = 1, padding: int | None = None) -> Tensor:
        x = self.conv(x, f"{name}.conv", stride=stride, padding=padding)
        return F.relu(self.norm(x, f"{name}.bn", eps=0.001))

    def _chain(self, x: Tensor, block: str, branch: str, steps: str, *, halve: bool) -> Tensor:
        """The units of a branch, one after the other; `halve` makes the last one a stride of 2."""
        names = [f"{branch}_{step}" for step in steps] or [branch]
        for name in names:
            last = halve and name == names[-1]
            name = f"Mixed_{block}.branch{name}"
            x = self._unit(x, name, stride=2, padding=0) if last else self._unit(x, name)
        return x

    def _mixed(self, x: Tensor, block: str, *branches: tuple[str, str]) -> Tensor:
        parts = [self._chain(x, block, *branch, halve=False) for branch in branches]
        pooled = self._chain(_mean(x), block, "_pool", "", halve=False)
        return torch.cat([*parts, pooled], 1)

    def _smaller(self, x: Tensor, block: str, *branches: tuple[str, str]) -> Tensor:
        parts = [self._chain(x, block, *branch, halve=True) for branch in branches]
        return torch.cat([*parts, F.max_pool2d(x, 3, stride=2)], 1)

    def _wide(self, x: Tensor, block: str, pool: Callable[[Tensor], Tensor]) -> Tensor:
        """Two of the branches end in two units side by side, across and down."""
        parts = [self._chain(x, block, "1x1", "", halve=False)]
        for branch, steps, last in (("3x3", "1", "2"), ("3x3dbl", "12", "3")):
            inner = self._chain(x, block, branch, steps, halve=False)
            for side in "ab":
                parts.append(self._unit(inner, f"Mixed_{block}.branch{branch}_{last}{side}"))
        pooled = self._chain(pool(x), block, "_pool", "", halve=False)
        return torch.cat([*parts, pooled], 1)


def _mean(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _maximum(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, stride=1, padding=1)
