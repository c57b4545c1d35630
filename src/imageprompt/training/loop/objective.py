"""The training objective: the base's own prediction target, with condition dropout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from imageprompt.encoding.image_prompt import ImagePrompt
from imageprompt.hosts import training_of
from imageprompt.training.config.config import ConditionDropout, Timesteps, TrainingConfig
from imageprompt.training.data.dataset import Batch, Dataset, Features, RandomStreams
from imageprompt.training.loop.noise_schedule import LossWeighting, NoiseSchedule

DISTILLED_GUIDANCE = 3.5


@dataclass(frozen=True)
class NullConditions:
    """What replaces dropped conditions; first dimension 1.

    Text and `added` are those of the empty caption, features those of the null image by the
    variant's rule.
    """

    text: Tensor
    features: Features
    added: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, samples: Dataset) -> NullConditions:
        return cls(samples.null_text(), samples.null_features(), samples.null_added())

    def in_dropped_rows(self, batch: Batch, dropped: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Text and `added` of a batch, those of the empty caption where `dropped` [b] is set."""
        added = {
            name: replace_rows(value, self.added[name], dropped) if name in self.added else value
            for name, value in batch.added.items()
        }
        return replace_rows(batch.text, self.text, dropped), added


@dataclass(frozen=True)
class RandomDraws:
    """Everything random about the loss of b samples."""

    times: Tensor
    noise: Tensor
    drop_image: Tensor
    drop_text: Tensor
    identity_only: Tensor
    scale: float = 1.0


@dataclass(frozen=True)
class Objective:
    """How the loss of a batch is computed; the defaults are the paper's."""

    dropout: ConditionDropout = field(default_factory=ConditionDropout)
    timesteps: Timesteps = field(default_factory=Timesteps)
    scales: tuple[float, float] = (1.0, 1.0)
    """Range of the adapter's scale, drawn once a step; the paper trains at 1."""
    min_snr: float | None = None
    """Cap of the signal-to-noise ratio that weights the loss (usually 5); None: no weights."""
    noise_offset: float = 0.0
    """Standard deviation of noise that is constant over a channel (usually 0.05)."""
    identity_only_prob: float = 0.0
    """Probability that FaceID-plus v2 sees the face embedding alone (usually 0.5)."""
    shift: float | None = None
    """Of flow matching's noise levels; None: the scheduler's own."""
    loss_weighting: LossWeighting = "none"
    guidance_scale: float | None = None
    """What a guidance-distilled base is told; None: 3.5, as in sampling."""
    autocast: bool = False
    """Compute in bfloat16 where the base's weights are float32."""

    @classmethod
    def of(cls, config: TrainingConfig) -> Objective:
        """The objective that a config describes."""
        return cls(
            dropout=config.drop,
            timesteps=config.timesteps,
            scales=config.scales,
            min_snr=config.min_snr or None,
            noise_offset=config.noise_offset,
            identity_only_prob=config.identity_only_prob,
            shift=config.shift,
            loss_weighting=config.loss_weighting,
            guidance_scale=config.guidance_scale,
        )

    @contextmanager
    def loss(
        self,
        adapter: Any,
        denoiser: Any,
        scheduler: Any,
        batch: Batch,
        nulls: NullConditions,
        streams: RandomStreams,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Loss [b] and timestep [b] of each sample, for an attached adapter.

        Call `backward()` inside the block: gradient checkpointing runs parts of the forward pass
        again. Raises OptionError for an unknown prediction type.
        """
        height, width = batch.latents.shape[-2:]
        training = training_of(denoiser)
        positions = height * width // training.patch_size(denoiser) ** 2
        mu = training.mu(denoiser, scheduler.config, positions)
        schedule = NoiseSchedule.of(scheduler, mu=mu, shift=self.shift)
        draws = self.draw(batch.latents, schedule, streams)
        with self.loss_from_draws(adapter, denoiser, schedule, batch, nulls, draws) as losses:
            yield losses, draws.times

    def draw(self, latents: Tensor, schedule: NoiseSchedule, streams: RandomStreams) -> RandomDraws:
        """All random numbers for latents [b, c, h, w]; drawn on the CPU."""
        drop_image, drop_text = self.dropout.draw(streams)
        times = self.timesteps.draw(len(schedule), streams, flow=schedule.prediction == "flow")
        noise = streams.randn(*latents.shape[1:])
        low, high = self.scales
        scale = low + (high - low) * streams.step_rand()
        identity_only = streams.rand() < self.identity_only_prob
        if self.noise_offset:
            noise += self.noise_offset * streams.randn(latents.shape[1], 1, 1)
        return RandomDraws(times, noise, drop_image, drop_text, identity_only, scale)

    @contextmanager
    def loss_from_draws(
        self,
        adapter: Any,
        denoiser: Any,
        schedule: NoiseSchedule,
        batch: Batch,
        nulls: NullConditions,
        draws: RandomDraws,
    ) -> Iterator[Tensor]:
        """Loss [b] for given random draws; differentiable inside the block.

        The denoiser computes in its own precision. Latents, noise and loss stay in float32, and so
        do SDXL's sizes, which half precision would round (2049) or overflow (70000).
        """
        device, dtype = denoiser.device, denoiser.dtype
        times = draws.times.to(device)
        clean, noise = batch.latents.to(device).float(), draws.noise.to(device)
        noisy = schedule.add_noise(clean, noise, times)
        text, added = nulls.in_dropped_rows(batch, draws.drop_text)
        with (
            torch.autocast(device.type, torch.bfloat16, enabled=self.autocast),
            self.in_use(adapter, batch.features, nulls.features, draws),
        ):
            prediction = training_of(denoiser).predict(
                denoiser,
                noisy.to(dtype),
                schedule.model_timesteps.to(device)[times],
                text.to(device, dtype),
                _cast_added(added, device, dtype),
                DISTILLED_GUIDANCE if self.guidance_scale is None else self.guidance_scale,
            )
            error = prediction.float() - schedule.target(clean, noise, times)
            losses = error.square().flatten(1).mean(1)
            if self.min_snr is not None:
                losses = losses * schedule.min_snr(self.min_snr, times)
            weights = schedule.weights(self.loss_weighting, times)
            yield losses if weights is None else losses * weights

    @contextmanager
    def in_use(
        self, adapter: Any, features: Features, null: Features, draws: RandomDraws
    ) -> Iterator[None]:
        """In the block the adapter acts with these features, or the null ones where dropped."""
        features = replace_features(features, null, draws.drop_image)
        tokens = _project(adapter, features, draws.identity_only)
        with adapter.use(ImagePrompt(tokens), scale=draws.scale, guidance="none"):
            yield


def objective_of(config: TrainingConfig) -> Objective:
    """The objective of a run that trains an adapter, or a pair of them."""
    if config.pairs == "none":
        return Objective.of(config)
    from imageprompt.training.loop.pair_objective import PairObjective

    return PairObjective.of(config)


def replace_rows(values: Tensor, null: Tensor, which: Tensor) -> Tensor:
    """`values` [b, ...] with `null` [1, ...] in the rows where bool `which` [b] is set."""
    mask = which.to(values.device).reshape(-1, *(1,) * (values.ndim - 1))
    return torch.where(mask, null.to(values.device, values.dtype), values)


def replace_features(features: Features, null: Features, which: Tensor) -> Features:
    if isinstance(features, Tensor):
        return replace_rows(features, null, which)  # type: ignore[arg-type]
    return tuple(replace_rows(*pair, which) for pair in zip(features, null, strict=True))


def _project(adapter: Any, features: Features, identity_only: Tensor) -> Tensor:
    if isinstance(features, Tensor):
        tokens: Tensor = adapter.project(features)
        return tokens
    strength = (~identity_only).float().reshape(-1, 1, 1)
    tokens = adapter.project(features, strength=strength)
    return tokens


def _cast_added(added: dict[str, Tensor], device: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    """Added conditions for the denoiser, masks as they are.

    Sizes stay in float32 for its sinusoidal embedding.
    """
    return {
        name: value.to(device, dtype)
        if value.is_floating_point() and name != "time_ids"
        else value.to(device)
        for name, value in added.items()
    }
