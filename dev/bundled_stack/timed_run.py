"""A training run of so many minutes of CPU time that can be resumed, and its learning rate."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bundled_stack.checkpoints import load_state, save_atomic
from imageprompt.training.loop.training_state import Ema, decay_groups


def schedule(progress: float, *, warm: float = 0.01, flat: float = 0.0) -> float:
    """Learning rate factor at `progress` 0..1: warm-up, constant until `flat`, cosine to 0."""
    if progress < warm:
        return max(progress / warm, 0.02)
    if progress < flat:
        return 1.0
    along = (progress - flat) / max(1 - flat, 1e-9)
    return 0.5 * (1 + math.cos(math.pi * min(max(along, 0.0), 1.0)))


class TimedRun:
    """A run of `minutes` of CPU time: optimiser, EMA, log, checkpoints.

    Resumes from an existing checkpoint.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        model: nn.Module,
        *,
        minutes: float,
        rate: float,
        decay: float = 0.01,
        ema: float = 0.998,
        flat: float = 0.0,
        clip: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.99),
        every: float = 90.0,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.name, self.model = folder, name, model
        self.minutes, self.rate, self.flat, self.clip, self.every = minutes, rate, flat, clip, every
        self.named = {key: value for key, value in model.named_parameters() if value.requires_grad}
        self.optimiser = torch.optim.AdamW(
            decay_groups(self.named.items(), decay), lr=rate, betas=betas, fused=True
        )
        self.ema = Ema(self.named, ema)
        self.steps, self.seconds, self.samples = 0, 0.0, 0
        self.averages: dict[str, float] = {}
        self.path = folder / f"{name}.ckpt"
        if self.path.exists():
            self._resume(load_state(self.path))
        self.mark, self.saved = time.process_time(), time.monotonic()

    @property
    def progress(self) -> float:
        """Fraction of the time that has passed, 0..1."""
        return self.seconds / (60 * self.minutes)

    @property
    def done(self) -> bool:
        """Is the time over?"""
        return self.progress >= 1

    def step(self, loss: torch.Tensor, samples: int, parts: dict[str, torch.Tensor]) -> None:
        """Backward, clip, optimiser step, EMA; log and checkpoint from time to time."""
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.named.values(), self.clip)
        factor = schedule(self.progress, flat=self.flat)
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate * factor
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.ema.update(self.named)
        self.steps += 1
        self.samples += samples
        for key, value in {"loss": loss, **parts}.items():
            number = float(value.detach())
            self.averages[key] = 0.98 * self.averages.get(key, number) + 0.02 * number
        now = time.process_time()
        self.seconds += now - self.mark
        self.mark = now
        if self.steps % 100 == 0:
            self.log()
        if time.monotonic() - self.saved > self.every or self.done:
            self.save()

    def log(self, **extra: float) -> None:
        """Append one JSON line: step, time, losses."""
        line = {"step": self.steps, "samples": self.samples, "minutes": round(self.seconds / 60, 2)}
        numbers = {key: round(value, 5) for key, value in (self.averages | extra).items()}
        with (self.folder / f"{self.name}.jsonl").open("a") as handle:
            handle.write(json.dumps(line | numbers) + "\n")

    def save(self) -> None:
        """Write a checkpoint now."""
        save_atomic(self._state(), self.path)
        self.saved = time.monotonic()

    def ema_state(self) -> dict[str, torch.Tensor]:
        """State dict of the model with the EMA weights."""
        return self.model.state_dict() | self.ema.average

    def _state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "ema": self.ema.state_dict(),
            "averages": self.averages,
            "counters": [self.steps, self.seconds, self.samples],
        }

    def _resume(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.ema.load_state_dict(state["ema"])
        self.averages = state["averages"]
        self.steps, self.seconds, self.samples = state["counters"]
