"""What an adapter is trained on: the base's own prediction, after exclusive drop events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from imageprompt.errors import OptionError


@dataclass(frozen=True)
class Drops:
    """Chances of the three events: the image is dropped, the text is dropped, or both are.

    They exclude one another (one draw per sample), as in the paper; .05 each there.
    """

    image: float = 0.05
    text: float = 0.05
    both: float = 0.05

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Which of `count` samples lose their image and which their text, bool [count] each."""
        event = torch.rand(count, generator=generator)
        image_only = event < self.image
        text_only = (event >= self.image) & (event < self.image + self.text)
        both = (event >= self.image + self.text) & (event < self.image + self.text + self.both)
        return image_only | both, text_only | both


@dataclass(frozen=True)
class Timesteps:
    """How training timesteps are drawn: a `uniform` share, the rest as sigmoid(N(mean, std))."""

    uniform: float = 1.0
    mean: float = 0.0
    std: float = 1.0

    def draw(self, count: int, total: int, generator: torch.Generator) -> Tensor:
        """Integer timesteps [count] below `total`."""
        flat = torch.rand(count, generator=generator)
        bell = torch.sigmoid(self.mean + self.std * torch.randn(count, generator=generator))
        pick = torch.rand(count, generator=generator) < self.uniform
        return (torch.where(pick, flat, bell) * total).long().clamp(0, total - 1)


def target_of(scheduler: Any, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """What the base was trained to predict, by its scheduler's `prediction_type`."""
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        velocity: Tensor = scheduler.get_velocity(clean, noise, times)
        return velocity
    if kind == "sample":
        return clean
    raise OptionError(
        f"prediction type {kind!r}",
        rule="training knows epsilon, v_prediction and sample",
        remedy="use a base with one of these",
    )
