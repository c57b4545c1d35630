"""How noise enters a latent and what the base predicts of it: epsilon, v, sample or flow.

The base's scheduler is read, never called: schedulers meant for sampling lack half of what training
asks for, and some mean other things by the same call. Shapes: T training timesteps, b samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from imageprompt.core.errors import OptionError

Prediction = Literal["epsilon", "v_prediction", "sample", "flow"]


@dataclass(frozen=True)
class NoiseSchedule:
    """x_t = signal[t] x_0 + sigma[t] noise for t = 0 ... T-1, and the target of prediction.

    `model_timesteps` [T] is what the denoiser is given as its timestep. All float32.
    """

    prediction: Prediction
    signal: Tensor
    sigma: Tensor
    model_timesteps: Tensor

    @classmethod
    def of(cls, scheduler: Any) -> NoiseSchedule:
        """Of a base's scheduler. Raises OptionError for a prediction that nobody here knows."""
        config = scheduler.config
        kind = config.get("prediction_type")
        if kind == "flow_prediction" or (kind is None and "shift" in config):
            return cls.flow(config["num_train_timesteps"], config.get("shift") or 1.0)
        kind = "epsilon" if kind is None else kind
        known = [name for name in get_args(Prediction) if name != "flow"]
        if kind not in known or not hasattr(scheduler, "alphas_cumprod"):
            raise OptionError(
                f"prediction type {kind!r} of a {type(scheduler).__name__}",
                reason=f"training knows {', '.join(known)} and flow matching",
                hint="Use a base with one of these.",
            )
        kept = torch.as_tensor(scheduler.alphas_cumprod, dtype=torch.float32).cpu()
        model_timesteps = torch.arange(len(kept))
        return cls(cast(Prediction, kind), kept.sqrt(), (1 - kept).sqrt(), model_timesteps)

    @classmethod
    def flow(cls, steps: int, shift: float) -> NoiseSchedule:
        """Rectified flow: x_t = (1 - s) x_0 + s noise, the denoiser model_timesteps s times `steps`."""
        even = torch.arange(1, steps + 1, dtype=torch.float32) / steps
        sigma = shift * even / (1 + (shift - 1) * even)
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
        """Weights [b] of the loss that cap the signal-to-noise ratio at gamma (arXiv 2303.09556).

        They are stated for the prediction of x_0, and carried over to the other two.
        """
        if self.prediction == "flow":
            raise OptionError(
                f"min_snr={gamma:g}",
                reason="it is defined for diffusion, this base is trained by flow matching",
                hint="Leave it out.",
            )
        ratio = ((self.signal / self.sigma) ** 2)[times.cpu()].to(times.device)
        capped = ratio.clamp(max=gamma)
        if self.prediction == "sample":
            return capped
        if self.prediction == "v_prediction":
            return capped / (ratio + 1)
        return (gamma / ratio).clamp(max=1.0)  # capped / ratio, where nothing of x_0 is left too

    def _at(self, table: Tensor, times: Tensor, like: Tensor) -> Tensor:
        """table[times] in the shape that multiplies `like` [b, ...]."""
        values = table[times.cpu()].to(like.device)
        return values.reshape(-1, *(1,) * (like.ndim - 1))
