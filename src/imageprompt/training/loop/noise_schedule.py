"""How noise is added to a latent and what the base predicts: epsilon, v, sample or flow.

The base's scheduler is read, never called: schedulers made for sampling lack half of what training
needs, and the same method does different things in different ones. Shapes: T training timesteps,
b samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from imageprompt.core.errors import OptionError

Prediction = Literal["epsilon", "v_prediction", "sample", "flow"]
LossWeighting = Literal["none", "cosmap", "sigma_sqrt"]


@dataclass(frozen=True)
class NoiseSchedule:
    """x_t = signal[t] x_0 + sigma[t] noise for t = 0 ... T-1, and the prediction target.

    `model_timesteps` [T] is what the denoiser receives as its timestep. All tables are float32.
    """

    prediction: Prediction
    signal: Tensor
    sigma: Tensor
    model_timesteps: Tensor

    @classmethod
    def of(cls, scheduler: Any, *, mu: float = 0.0, shift: float | None = None) -> NoiseSchedule:
        """The schedule of a base's scheduler.

        `mu` is what the pipeline hands a scheduler whose shift is dynamic; `shift` replaces the
        scheduler's own shift of flow matching. Raises OptionError for an
        unknown prediction type, and for a shift of another than flow matching.
        """
        config = scheduler.config
        kind = config.get("prediction_type")
        if is_flow(scheduler):
            own = _shift_of(config, mu) if shift is None else shift
            return cls.flow(config["num_train_timesteps"], own)
        if shift is not None:
            raise OptionError(
                f"shift: {shift:g}",
                reason=f"{type(scheduler).__name__} of this base is not flow matching",
                hint="Leave it out.",
            )
        kind = "epsilon" if kind is None else kind
        known = [name for name in get_args(Prediction) if name != "flow"]
        if kind not in known or not hasattr(scheduler, "alphas_cumprod"):
            raise OptionError(
                f"prediction type {kind!r} of {type(scheduler).__name__}",
                reason=f"training supports {', '.join(known)} and flow matching",
                hint="Use a base with one of these.",
            )
        alphas = torch.as_tensor(scheduler.alphas_cumprod, dtype=torch.float32).cpu()
        model_timesteps = torch.arange(len(alphas))
        return cls(cast(Prediction, kind), alphas.sqrt(), (1 - alphas).sqrt(), model_timesteps)

    @classmethod
    def flow(cls, steps: int, shift: float) -> NoiseSchedule:
        """Rectified flow: x_t = (1 - s) x_0 + s noise; the model's timestep is s times `steps`."""
        uniform = torch.arange(1, steps + 1, dtype=torch.float32) / steps
        sigma = shift * uniform / (1 + (shift - 1) * uniform)
        return cls("flow", 1 - sigma, sigma, sigma * steps)

    def __len__(self) -> int:
        return len(self.signal)

    def add_noise(self, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """x_t of clean latents [b, ...] at times [b]."""
        return (
            self._at(self.signal, times, clean) * clean + self._at(self.sigma, times, clean) * noise
        )

    def target(self, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """What the base was trained to predict."""
        if self.prediction == "epsilon":
            return noise
        if self.prediction == "sample":
            return clean
        if self.prediction == "flow":
            return noise - clean
        return (
            self._at(self.signal, times, clean) * noise - self._at(self.sigma, times, clean) * clean
        )

    def min_snr(self, gamma: float, times: Tensor) -> Tensor:
        """Loss weights [b] that cap the signal-to-noise ratio at gamma (arXiv 2303.09556).

        The paper defines them for the prediction of x_0; here they are converted for epsilon and
        v. Raises OptionError for flow matching, where they are not defined.
        """
        if self.prediction == "flow":
            raise OptionError(
                f"min_snr={gamma:g}",
                reason="not defined for flow matching, which this base uses",
                hint="Leave it out.",
            )
        ratio = ((self.signal / self.sigma) ** 2)[times.cpu()].to(times.device)
        capped = ratio.clamp(max=gamma)
        if self.prediction == "sample":
            return capped
        if self.prediction == "v_prediction":
            return capped / (ratio + 1)
        return (gamma / ratio).clamp(max=1.0)  # capped / ratio, but finite at a ratio of 0

    def weights(self, weighting: LossWeighting, times: Tensor) -> Tensor | None:
        """Weights [b] of flow matching's loss (arXiv 2403.03206, section 3.1); None: all 1.

        Raises OptionError for another prediction type.
        """
        if weighting == "none":
            return None
        if self.prediction != "flow":
            raise OptionError(
                f"loss_weighting: {weighting}",
                reason="only defined for flow matching, which this base does not use",
                hint="Leave it out, or use min_snr.",
            )
        sigma = self.sigma[times.cpu()].to(times.device)
        if weighting == "sigma_sqrt":
            return sigma**-2
        return 2 / (math.pi * (1 - 2 * sigma + 2 * sigma**2))

    def _at(self, table: Tensor, times: Tensor, like: Tensor) -> Tensor:
        """table[times], shaped to multiply `like` [b, ...]."""
        values = table[times.cpu()].to(like.device)
        return values.reshape(-1, *(1,) * (like.ndim - 1))


def is_flow(scheduler: Any) -> bool:
    """Is the base of this scheduler a rectified flow?"""
    kind = scheduler.config.get("prediction_type")
    return kind == "flow_prediction" or (kind is None and "shift" in scheduler.config)


def _shift_of(config: Any, mu: float) -> float:
    """The scheduler's shift: e^mu or, for "linear" shifts, mu itself where it is dynamic."""
    if not config.get("use_dynamic_shifting"):
        return float(config.get("shift") or config.get("flow_shift") or 1.0)
    return mu if config.get("time_shift_type") == "linear" else math.exp(mu)
