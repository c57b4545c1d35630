"""What an adapter is trained on: the base's own prediction, after exclusive drop events."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from imageprompt.encoding.image_prompt import ImagePrompt
from imageprompt.training.data.dataset import Batch, Features, Samples
from imageprompt.training.data.random_streams import RandomStreams
from imageprompt.training.loop.noise_schedule import NoiseSchedule


@dataclass(frozen=True)
class ConditionDropout:
    """Chances of the three events: the image is dropped, the text is dropped, or both are.

    They exclude one another (one draw per sample), as in the paper; .05 each there.
    """

    image: float = 0.05
    text: float = 0.05
    both: float = 0.05

    def draw(self, chance: RandomStreams) -> tuple[Tensor, Tensor]:
        """Which of the b samples lose their image and which their text, bool [b] each."""
        event = chance.rand()
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

    def draw(self, total: int, chance: RandomStreams) -> Tensor:
        """Integer timesteps [b] below `total`."""
        flat = chance.rand()
        bell = torch.sigmoid(self.mean + self.std * chance.randn())
        pick = chance.rand() < self.uniform
        return (torch.where(pick, flat, bell) * total).long().clamp(0, total - 1)


@dataclass(frozen=True)
class NullConditions:
    """What dropped parts are replaced by: of the empty caption and, by the variant's rule, of no
    picture. First dimension 1."""

    text: Tensor
    features: Features
    added: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, samples: Samples) -> NullConditions:
        return cls(samples.null_text(), samples.null_features(), samples.null_added())


@dataclass(frozen=True)
class Draw:
    """All that chance decides about the loss of b samples."""

    times: Tensor
    noise: Tensor
    drop_image: Tensor
    drop_text: Tensor
    drop_branch: Tensor
    scale: float = 1.0


@dataclass(frozen=True)
class Objective:
    """How the loss of a batch comes about; the defaults are the paper's."""

    drops: ConditionDropout = field(default_factory=ConditionDropout)
    timesteps: Timesteps = field(default_factory=Timesteps)
    scales: tuple[float, float] = (1.0, 1.0)
    """Range that the adapter's scale is drawn from, once a step; the paper trains at 1."""
    min_snr: float | None = None
    """Cap of the signal-to-noise ratio that weights the loss (5 where it is used)."""
    noise_offset: float = 0.0
    """Standard deviation of noise that is the same all over a channel (0.05 where it is used)."""
    identity_only_prob: float = 0.0
    """How often FaceID-plus v2 sees the face embedding alone (0.5 where it is used)."""
    autocast: bool = False
    """Compute in bfloat16 where the base's weights are float32."""

    @contextmanager
    def loss(
        self,
        adapter: Any,
        denoiser: Any,
        scheduler: Any,
        batch: Batch,
        nulls: NullConditions,
        chance: RandomStreams,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Loss [b] of each sample and its timestep [b], for an attached adapter.

        Run `backward()` inside the block: with gradient checkpointing it computes parts of the
        forward pass again. Raises OptionError for a base that predicts something unknown.
        """
        noising = NoiseSchedule.of(scheduler)
        draw = self.draw(batch.latents, noising, chance)
        with self.loss_of(adapter, denoiser, noising, batch, nulls, draw) as losses:
            yield losses, draw.times

    def draw(self, latents: Tensor, noising: NoiseSchedule, chance: RandomStreams) -> Draw:
        """Everything random about the loss of latents [b, c, h, w]; drawn on the CPU."""
        drop_image, drop_text = self.drops.draw(chance)
        times = self.timesteps.draw(len(noising), chance)
        noise = chance.randn(*latents.shape[1:])
        low, high = self.scales
        scale = low + (high - low) * chance.step_rand()
        drop_branch = chance.rand() < self.identity_only_prob
        if self.noise_offset:
            noise += self.noise_offset * chance.randn(latents.shape[1], 1, 1)
        return Draw(times, noise, drop_image, drop_text, drop_branch, scale)

    @contextmanager
    def loss_of(
        self,
        adapter: Any,
        denoiser: Any,
        noising: NoiseSchedule,
        batch: Batch,
        nulls: NullConditions,
        draw: Draw,
    ) -> Iterator[Tensor]:
        """Loss [b] with everything random decided; differentiable inside the block.

        The denoiser computes in its own precision; latents, noise and loss stay in float32, and so
        do SDXL's sizes, which half precision would round (2049) or make infinite (70000).
        """
        device, dtype = denoiser.device, denoiser.dtype
        times = draw.times.to(device)
        clean, noise = batch.latents.to(device).float(), draw.noise.to(device)
        noisy = noising.add_noise(clean, noise, times)
        text = replaced(batch.text, nulls.text, draw.drop_text)
        features = _replaced_features(batch.features, nulls.features, draw.drop_image)
        conditions = {
            name: replaced(value, nulls.added[name], draw.drop_text)
            if name in nulls.added
            else value
            for name, value in batch.added.items()
        }
        with torch.autocast(device.type, torch.bfloat16, enabled=self.autocast):
            tokens = _tokens(adapter, features, draw.drop_branch)
            with adapter.use(ImagePrompt(tokens), scale=draw.scale, guidance="none"):
                guess = denoiser(
                    noisy.to(dtype),
                    noising.model_timesteps.to(device)[times],
                    encoder_hidden_states=text.to(device, dtype),
                    added_cond_kwargs=_conditions(conditions, device, dtype) or None,
                    return_dict=False,
                )[0]
                error = guess.float() - noising.target(clean, noise, times)
                losses = error.square().flatten(1).mean(1)
                if self.min_snr is not None:
                    losses = losses * noising.min_snr(self.min_snr, times)
                yield losses


def replaced(values: Tensor, null: Tensor, which: Tensor) -> Tensor:
    """`values` [b, ...] with `null` [1, ...] in the rows that bool `which` [b] names."""
    mask = which.to(values.device).reshape(-1, *(1,) * (values.ndim - 1))
    return torch.where(mask, null.to(values.device, values.dtype), values)


def _replaced_features(features: Features, null: Features, which: Tensor) -> Features:
    if isinstance(features, Tensor):
        return replaced(features, null, which)  # type: ignore[arg-type]
    return tuple(replaced(*pair, which) for pair in zip(features, null, strict=True))


def _tokens(adapter: Any, features: Features, drop_branch: Tensor) -> Tensor:
    if isinstance(features, Tensor):
        tokens: Tensor = adapter.project(features)
        return tokens
    strength = (~drop_branch).float().reshape(-1, 1, 1)
    tokens = adapter.project(features, strength=strength)
    return tokens


def _conditions(added: dict[str, Tensor], device: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    """What the denoiser wants besides; sizes stay in float32, from which it makes sinusoids."""
    return {
        name: value.to(device, torch.float32 if name == "time_ids" else dtype)
        for name, value in added.items()
    }
