"""The numbers that decide how the loop goes: steps, batch, rates, averages, what is saved when."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from imageprompt.core.errors import OptionError
from imageprompt.training.loop.objective import ConditionDropout, Timesteps

SCHEDULES = ("constant", "cosine", "linear")
FREE = ("save_every", "validate_every", "log_every", "keep")
"""What may differ between a run and its continuation: no weight depends on it."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One run of the loop. `batch` samples a process, `accumulate` times, make one step."""

    steps: int
    batch: int = 8
    accumulate: int = 1
    rate: float = 1e-4
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    warmup: int = 100
    schedule: str = "cosine"
    """How the rate falls to nothing: "cosine" or "linear"; "constant": it does not."""
    decay_from: float = 0.7
    """Share of the steps after which it falls."""
    clip: float = 1.0
    """Largest norm of the gradient; 0: any."""
    ema: float = 0.999
    """Decay of the running average, which is what is saved in the end; 0: there is none."""
    seed: int = 0
    scales: tuple[float, float] = (1.0, 1.0)
    """Range that the adapter's scale is drawn from, once a step; the paper trains at 1."""
    autocast: bool = False
    """bfloat16 where autocast allows, for a base that is kept in float32."""
    loss_scaling: bool = False
    """For a base in float16, whose gradients would vanish."""
    save_every: int = 500
    validate_every: int = 0
    log_every: int = 50
    keep: int = 2
    """Checkpoints that are kept, newest first."""
    drops: ConditionDropout = field(default_factory=ConditionDropout)
    timesteps: Timesteps = field(default_factory=Timesteps)

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise OptionError(
                f"schedule {self.schedule!r}",
                reason=f"it is one of {', '.join(SCHEDULES)}",
                hint="Choose one of these.",
            )

    def rate_at(self, step: int) -> float:
        """Rate of a step: linear warm-up, constant, falling to zero from `decay_from` on."""
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        along = step / self.steps
        if self.schedule == "constant" or along <= self.decay_from:
            return self.rate
        fallen = (along - self.decay_from) / (1 - self.decay_from)
        if self.schedule == "linear":
            return self.rate * (1 - fallen)
        return self.rate * 0.5 * (1 + math.cos(math.pi * fallen))

    def identity(self) -> dict[str, Any]:
        """What a run and its continuation must share, as plain values."""
        return {name: value for name, value in asdict(self).items() if name not in FREE}
