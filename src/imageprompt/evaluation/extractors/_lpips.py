"""The networks of LPIPS, computed from the files of torchvision and of LPIPS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from imageprompt.checkpoint.read.file import WEIGHT_SUFFIXES
from imageprompt.core.errors import EncoderError
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
    from torch import Tensor

    from imageprompt.evaluation.metrics.contract import Pixels

PUBLISHED = "7be5be79 397923af b8a52dc0 df73285e a78928a0 4a5350f2"
"""Starts of the SHA-256 of the three trunks and of the weights of their layers."""
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Of pixels in -1..1: ImageNet's mean and standard deviation, rounded as LPIPS has them."""
_EPSILON = 1e-10


class Lpips:
    """Two pictures of one size -> their distance."""

    preprocessing = (
        "pixels in -1..1, not resized; mean -0.030 -0.088 -0.188, standard deviation 0.458 0.448 "
        "0.450"
    )

    def __init__(self, source: str, device: str | None) -> None:
        """Raises NotFoundError, EncoderError."""
        stated, self._device = Source.of(source), device or "cpu"
        trunk, heads = _files(stated.place)
        self.name = published_weights("lpips", [trunk, heads], stated, PUBLISHED)
        self.fingerprint = identity(trunk.sha256, heads.sha256, self.preprocessing)
        layers = trunk.tensors(device, ("features.",))
        try:
            self._trunk = _trunk(layers)
            self._heads = _head_weights(heads.tensors(device))
            black = np.zeros((64, 64, 3), np.uint8)
            self.distance(black, black)
        except MISFITS as error:
            raise misfit("lpips", stated, error) from None

    def distance(self, picture: Pixels, reference: Pixels) -> float:
        with torch.no_grad():
            pixels = torch.cat([_prepared(one).to(self._device) for one in (picture, reference)])
            return float(distance(self._trunk.features(pixels), self._heads))


def distance(features: Sequence[Tensor], heads: Sequence[Tensor]) -> Tensor:
    """Of layers [2, c, h, w] weighed by [1, c, 1, 1]: squared differences, summed over layers."""
    total = torch.zeros((), device=features[0].device)
    for layer, weight in zip(features, heads, strict=True):
        unit = layer / (layer.square().sum(1, keepdim=True).sqrt() + _EPSILON)
        total = total + F.conv2d((unit[:1] - unit[1:]).square(), weight).mean()
    return total


def _prepared(pixels: Pixels) -> Tensor:
    """[1, 3, h, w]."""
    values = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    shift, scale = (torch.tensor(one)[:, None, None] for one in (_SHIFT, _SCALE))
    return (values - shift) / scale


# ── trunks ──────────────────────────────────────────────────────────────────────────────────────


class AlexNet(Convolutions):
    def features(self, x: Tensor) -> list[Tensor]:
        """The five layers after their rectifier."""
        x = F.relu(self.conv(x, "features.0", stride=4, padding=2))
        found = [x]
        for layer in (3, 6, 8, 10):
            x = F.max_pool2d(x, 3, stride=2) if layer < 8 else x
            x = F.relu(self.conv(x, f"features.{layer}"))
            found.append(x)
        return found


class Vgg16(Convolutions):
    blocks = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))

    def features(self, x: Tensor) -> list[Tensor]:
        """The last layer of each of five blocks after its rectifier."""
        found: list[Tensor] = []
        for block in self.blocks:
            x = F.max_pool2d(x, 2) if found else x
            for layer in block:
                x = F.relu(self.conv(x, f"features.{layer}"))
            found.append(x)
        return found


class SqueezeNet(Convolutions):
    def features(self, x: Tensor) -> list[Tensor]:
        """The first layer, and the fire modules before each pool and from the sixth on."""
        x = F.relu(self.conv(x, "features.0", stride=2, padding=0))
        found = [x]
        for layer in (3, 4, 6, 7, 9, 10, 11, 12):
            if layer in (3, 6, 9):
                x = F.max_pool2d(x, 3, stride=2, ceil_mode=True)
            x = self._fire(x, f"features.{layer}")
            if layer not in (3, 6):
                found.append(x)
        return found

    def _fire(self, x: Tensor, name: str) -> Tensor:
        x = F.relu(self.conv(x, f"{name}.squeeze"))
        sides = (F.relu(self.conv(x, f"{name}.expand{side}")) for side in ("1x1", "3x3"))
        return torch.cat([*sides], 1)


def _trunk(layers: Mapping[str, Tensor]) -> AlexNet | Vgg16 | SqueezeNet:
    if "features.3.squeeze.weight" in layers:
        return SqueezeNet(layers)
    return (AlexNet if layers["features.0.weight"].shape[-1] == 11 else Vgg16)(layers)


def _head_weights(tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """[1, c, 1, 1] of each layer."""
    return [tensors[f"lin{layer}.model.1.weight"] for layer in range(len(tensors))]


# ── files ───────────────────────────────────────────────────────────────────────────────────────


def _files(place: str) -> tuple[WeightFile, WeightFile]:
    """The trunk and the weights of its layers, told apart by the names of their tensors."""
    folder = Path(place).expanduser()
    if folder.is_dir():
        found = sorted(str(one) for one in folder.iterdir() if one.suffix in WEIGHT_SUFFIXES)
    else:
        found = place.split(",")
    files = [WeightFile.open(one.strip()) for one in found[:3]]
    trunks = [one for one in files if "features.0.weight" in one.shapes]
    heads = [one for one in files if "lin0.model.1.weight" in one.shapes]
    if len(files) != 2 or len(trunks) != 1 or len(heads) != 1:
        raise EncoderError(
            f"lpips weights {place!r}",
            reason=f"{len(trunks)} trunks and {len(heads)} files of layer weights, not one of each",
            hint="Give both with a comma between, such as alexnet-owt-7be5be79.pth,alex.pth.",
        )
    return trunks[0], heads[0]
