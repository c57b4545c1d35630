"""The training loop of an adapter: frozen base, drop events, EMA, exact resume."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imageprompt.errors import OptionError
from imageprompt.training.data import Batch, Samples, indices_at
from imageprompt.training.objective import Drops, Timesteps, target_of
from imageprompt.training.state import Ema, decay_groups, load_state, save_atomic


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run; after the share `decay_from` of it the rate falls."""

    steps: int
    batch: int = 8
    rate: float = 1e-4
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    warmup: int = 100
    decay_from: float = 0.7
    clip: float = 1.0
    ema: float = 0.999
    seed: int = 0
    scales: tuple[float, float] = (1.0, 1.0)
    """Range that the adapter's scale is drawn from, once a step; the paper trains at 1."""
    autocast: bool = False
    save_every: int = 500
    log_every: int = 50
    drops: Drops = field(default_factory=Drops)
    timesteps: Timesteps = field(default_factory=Timesteps)

    def rate_at(self, step: int) -> float:
        """Rate of a step: linear warm-up, constant, cosine to zero from `decay_from` on."""
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        along = step / self.steps
        if along <= self.decay_from:
            return self.rate
        return (
            self.rate
            * 0.5
            * (1 + math.cos(math.pi * (along - self.decay_from) / (1 - self.decay_from)))
        )


class Trainer:
    """One run of one adapter on one frozen denoiser, in one folder.

    `adapter` is attached to `denoiser`; `scheduler` is the base's own. `folder` gets `state.ckpt`
    (everything needed to go on as if nothing had happened) and `metrics.jsonl`.
    """

    def __init__(
        self,
        adapter: Any,
        denoiser: nn.Module,
        scheduler: Any,
        samples: Samples,
        config: TrainConfig,
        folder: Path,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.adapter, self.denoiser, self.scheduler = adapter, denoiser, scheduler
        self.samples, self.config, self.folder = samples, config, folder
        denoiser.requires_grad_(False)
        adapter.module.requires_grad_(True)
        self.named: dict[str, nn.Parameter] = dict(adapter.module.named_parameters())
        self.optimiser = torch.optim.AdamW(
            decay_groups(self.named.items(), config.weight_decay),
            lr=config.rate,
            betas=config.betas,
        )
        self.ema = Ema(self.named, config.ema)
        self.step = 0
        self.path = folder / "state.ckpt"
        if self.path.exists():
            self._resume()

    def run(self, until: int | None = None) -> None:
        """Train up to step `until` (default: the end) and save."""
        last = self.config.steps if until is None else min(until, self.config.steps)
        started, since = time.monotonic(), self.step
        total = 0.0
        while self.step < last:
            total += self._one_step()
            if self.step % self.config.log_every == 0:
                speed = (self.step - since) * self.config.batch / (time.monotonic() - started)
                self._log(loss=total / self.config.log_every, samples_per_second=speed)
                total = 0.0
            if self.step % self.config.save_every == 0 and self.step < last:
                self.save()
        self.save()

    def _one_step(self) -> float:
        config = self.config
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + self.step)
        indices = indices_at(self.step, config.batch, len(self.samples), config.seed)
        batch = self.samples.batch(indices, generator)
        loss = self.loss(batch, generator)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise OptionError(
                f"training step {self.step}",
                rule="the loss is not a finite number",
                remedy="lower the rate and start again from the last checkpoint",
            )
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.named.values(), config.clip)
        for group in self.optimiser.param_groups:
            group["lr"] = config.rate_at(self.step)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1
        self.ema.update(self.named)
        return value

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Mean squared error against the base's own target, after the drop events."""
        from imageprompt.prompt import ImagePrompt

        count = len(batch.latents)
        drop_image, drop_text = self.config.drops.draw(count, generator)
        total = self.scheduler.config.num_train_timesteps
        times = self.config.timesteps.draw(count, total, generator)
        noise = torch.randn(batch.latents.shape, generator=generator)
        noisy = self.scheduler.add_noise(batch.latents, noise, times)
        target = target_of(self.scheduler, batch.latents, noise, times)
        text = _replace(batch.text, self.samples.null_text(), drop_text)
        features = _replace(batch.features, self.samples.null_features(), drop_image)
        low, high = self.config.scales
        scale = low + (high - low) * float(torch.rand((), generator=generator))
        with torch.autocast(noisy.device.type, torch.bfloat16, enabled=self.config.autocast):
            tokens = self.adapter.project(features)
            prompt = ImagePrompt(tokens)
            with self.adapter.use(prompt, scale=scale, guidance="none"):
                guess = self.denoiser(noisy, times, encoder_hidden_states=text, return_dict=False)[
                    0
                ]
        return F.mse_loss(guess.float(), target.float())

    def save(self) -> None:
        """Checkpoint now, atomically."""
        state = {
            "step": self.step,
            "module": {name: value.detach() for name, value in self.named.items()},
            "optimiser": self.optimiser.state_dict(),
            "ema": self.ema.state_dict(),
            "config": asdict(self.config),
        }
        save_atomic(state, self.path)

    def _resume(self) -> None:
        state = load_state(self.path)
        now = asdict(self.config)
        changed = sorted(key for key, value in state["config"].items() if now.get(key) != value)
        if changed:
            raise OptionError(
                f"training folder {self.folder}",
                rule=f"it belongs to a run with other settings ({', '.join(changed)})",
                remedy="use the same settings or an empty folder",
            )
        with torch.no_grad():
            for name, parameter in self.named.items():
                parameter.copy_(state["module"][name])
        self.optimiser.load_state_dict(state["optimiser"])
        self.ema.load_state_dict(state["ema"])
        self.step = state["step"]

    def _log(self, **figures: float) -> None:
        line = {"step": self.step, "rate": self.config.rate_at(self.step)}
        with (self.folder / "metrics.jsonl").open("a") as handle:
            handle.write(json.dumps(line | {k: round(v, 6) for k, v in figures.items()}) + "\n")

    def use_average(self) -> None:
        """Put the running averages into the adapter, to save or sample; training is over then."""
        with torch.no_grad():
            for name, parameter in self.named.items():
                parameter.copy_(self.ema.average[name])


def _replace(values: Tensor, null: Tensor, which: Tensor) -> Tensor:
    mask = which.reshape(-1, *(1,) * (values.ndim - 1))
    return torch.where(mask, null.to(values.dtype), values)
