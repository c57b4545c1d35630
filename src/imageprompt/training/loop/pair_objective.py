"""The training objective of a pair: each adapter has its own features, drops and scales."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from imageprompt.encoding.image_prompt import ImagePrompt
from imageprompt.training.config.config import PartConfig, TrainingConfig
from imageprompt.training.data.dataset import Features, RandomStreams
from imageprompt.training.loop.objective import Objective, RandomDraws, replace_rows

if TYPE_CHECKING:
    from imageprompt.training.loop.noise_schedule import NoiseSchedule


@dataclass(frozen=True)
class PartDraws:
    """Which of b samples lose the reference of one adapter, and its scale in each [b]."""

    drop: Tensor
    scale: Tensor


@dataclass(frozen=True)
class PairDraws(RandomDraws):
    """Everything random about the loss of b samples of a pair."""

    parts: tuple[PartDraws, ...] = ()


@dataclass(frozen=True)
class PairObjective(Objective):
    """The loss of both adapters at once. `dropout` drops both references.

    The features of a batch are a tuple, those of the content adapter first.
    """

    content: PartConfig = field(default_factory=PartConfig)
    style: PartConfig = field(default_factory=PartConfig)

    @classmethod
    def of(cls, config: TrainingConfig) -> PairObjective:
        """The objective that a config describes."""
        return cls(**vars(Objective.of(config)), content=config.content, style=config.style)

    def draw(self, latents: Tensor, schedule: NoiseSchedule, streams: RandomStreams) -> PairDraws:
        """All random numbers for latents [b, c, h, w]; a scale for each sample and adapter."""
        shared = super().draw(latents, schedule, streams)
        event, low, parts = streams.rand(), 0.0, []
        for part in (self.content, self.style):
            alone = (event >= low) & (event < low + part.drop)
            low += part.drop
            drop = alone | shared.drop_image
            first, last = self.scales
            scale = first + (last - first) * streams.rand()
            off = drop & (streams.rand() < part.off)
            parts.append(PartDraws(drop, torch.where(off, 0.0, scale)))
        return PairDraws(**vars(shared), parts=tuple(parts))

    @contextmanager
    def in_use(
        self, adapter: Any, features: Features, null: Features, draws: RandomDraws
    ) -> Iterator[None]:
        """In the block both adapters act, each sample at its own scales."""
        assert isinstance(draws, PairDraws)
        with ExitStack() as stack:
            each = zip(adapter.adapters, features, null, draws.parts, strict=True)
            for one, own, without, part in each:
                tokens = one.project(replace_rows(own, without, part.drop))
                prompt = ImagePrompt(tokens)
                handle = stack.enter_context(one.use(prompt, scale=1.0, guidance="none"))
                handle.scale_rows(part.scale)
            yield
