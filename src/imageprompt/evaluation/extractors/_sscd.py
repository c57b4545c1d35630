"""SSCD's network: a ResNet with generalised-mean pooling, as torchvision names its layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from imageprompt.encoding.encoders._folder import IMAGENET
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

PUBLISHED = ""
"""No hash of a file in torchvision's layout is known here."""
SIDE = 288
_KEYS = ("image_mean", "image_std")
POWER = 3
"""Of the pooling: a mean is 1, a maximum has no end."""


class Sscd:
    """Pictures -> embeddings of length 1; sizes differ, so they are read one at a time."""

    preprocessing = (
        f"shorter side {SIDE}, bilinear with antialiasing, clamped and rounded to 8 bits, not "
        "cropped; mean 0.485 0.456 0.406, standard deviation 0.229 0.224 0.225"
    )

    def __init__(self, source: str, device: str | None) -> None:
        """Raises NotFoundError, EncoderError."""
        stated = Source.of(source)
        file = WeightFile.open(stated.place)
        self.name = published_weights("copy", [file], stated, PUBLISHED)
        self.fingerprint = identity(file.sha256, self.preprocessing)
        tensors = file.tensors(device)
        self._network = Network({n.removeprefix("backbone."): one for n, one in tensors.items()})
        self._device = device or "cpu"
        try:
            with torch.no_grad():
                found = self._network.embed(torch.zeros(1, 3, 64, 64, device=self._device))
        except MISFITS as error:
            raise misfit("copy", stated, error) from None
        self.width = found.shape[1]

    def encode(self, pictures: Sequence[Image]) -> Rows:
        with torch.no_grad():
            rows = [self._network.embed(prepared(one).to(self._device)) for one in pictures]
        embeddings: Rows = torch.cat(rows).cpu().numpy()
        return embeddings


def prepared(picture: Image) -> Tensor:
    """[1, 3, h, w], the shorter side 288, normalised as ImageNet's pictures are."""
    from PIL import Image

    factor = SIDE / min(picture.size)
    width, height = (max(int(length * factor), SIDE) for length in picture.size)
    resized = picture.resize((width, height), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None].float() / 255
    mean, deviation = (torch.tensor(IMAGENET[key])[:, None, None] for key in _KEYS)
    return (pixels - mean) / deviation


class Network(Convolutions):
    """Names of layers are those of the file, without "backbone."."""

    def embed(self, x: Tensor) -> Tensor:
        """[n, 3, h, w] -> [n, 512] of length 1."""
        x = F.relu(self.norm(self.conv(x, "conv1", stride=2), "bn1"))
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        for stage in range(1, 5):
            for block in range(self._blocks(stage)):
                x = self._bottleneck(x, f"layer{stage}.{block}", 2 if stage > 1 > block else 1)
        pooled = x.clamp(min=1e-6).pow(POWER).mean((2, 3)).pow(1 / POWER)
        return F.normalize(F.linear(pooled, self.tensors["fc.weight"], self.tensors["fc.bias"]))

    def _blocks(self, stage: int) -> int:
        return len({one.split(".")[1] for one in self.tensors if one.startswith(f"layer{stage}.")})

    def _bottleneck(self, x: Tensor, name: str, stride: int) -> Tensor:
        inner = F.relu(self.norm(self.conv(x, f"{name}.conv1"), f"{name}.bn1"))
        inner = self.conv(inner, f"{name}.conv2", stride=stride)
        inner = F.relu(self.norm(inner, f"{name}.bn2"))
        inner = self.norm(self.conv(inner, f"{name}.conv3"), f"{name}.bn3")
        if f"{name}.downsample.0.weight" in self.tensors:
            x = self.conv(x, f"{name}.downsample.0", stride=stride)
            x = self.norm(x, f"{name}.downsample.1")
        return F.relu(x + inner)
