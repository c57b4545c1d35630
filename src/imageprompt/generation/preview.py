"""Previews: what a step predicts, as a small picture, by a linear map from latents to RGB."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from imageprompt.core.errors import OptionError
from imageprompt.loading.pipeline import device_of

if TYPE_CHECKING:
    from PIL.Image import Image

_LONGEST = 256  # pixels, unless there are more latents
_PICTURES, _CELLS = 24, 16
"""How many pictures a map is fitted to, and their side in latents."""


@dataclass(frozen=True)
class LatentPreview:
    """A linear map from latents to RGB, fitted to the VAE of a pipeline."""

    weights: Tensor
    """[C + 1, 3] in float32 on the CPU; the last row is the constant."""
    r2: float
    """The share of the variance of its own pictures that it explains."""

    @classmethod
    def fit(cls, pipe: Any) -> LatentPreview:
        """Least squares between random pictures, one mean colour per latent, and their latents.

        Draws from a generator of its own. Raises OptionError for a pipeline without a VAE.
        """
        vae = getattr(pipe, "vae", None)
        if vae is None or not hasattr(vae, "encode"):
            raise OptionError("a preview", reason="this pipeline has no VAE", hint="Use on_image.")
        pictures = _random_pictures(_CELLS * pipe.vae_scale_factor)
        with torch.no_grad():
            device = device_of(pipe)
            encoded = [vae.encode(one.to(device, vae.dtype)) for one in torch.split(pictures, 4)]
        latents = torch.cat([one.latent_dist.mode().float().cpu() for one in encoded])
        latents = _normalised(latents, vae.config)
        inputs = _rows(latents)
        colours = functional.interpolate(pictures, size=latents.shape[-2:], mode="area")
        targets = colours.movedim(1, -1).flatten(0, 2)
        weights = torch.linalg.lstsq(inputs, targets).solution
        left = (inputs @ weights - targets).var() / targets.var()
        if not torch.isfinite(left):
            raise OptionError(
                "a preview",
                reason=f"the VAE gives no finite latents in {vae.dtype}",
                hint="Use pipe.upcast_vae(), or a VAE for half precision.",
            )
        return cls(weights, 1 - float(left))

    def pictures(self, latents: Tensor) -> list[Image]:
        """Latents [n, C, h, w] -> n pictures, enlarged up to 8 times and to 256 pixels."""
        from PIL import Image

        count, _, height, width = latents.shape
        times = max(1, min(8, _LONGEST // max(height, width)))
        size = (width * times, height * times)
        colours = (_rows(latents.float().cpu()) @ self.weights).view(count, height, width, 3)
        values = ((colours / 2 + 0.5).clamp(0, 1) * 255).round().byte().numpy()
        return [Image.fromarray(one).resize(size, Image.Resampling.BICUBIC) for one in values]


def _normalised(latents: Tensor, config: Any) -> Tensor:
    """Latents of the VAE as the denoiser knows them, by the VAE's config."""
    scale = float(config.scaling_factor)
    mean, std = (getattr(config, name, None) for name in ("latents_mean", "latents_std"))
    if mean is not None and std is not None:  # as diffusers' SDXL pipelines decode them
        shift, spread = (torch.tensor(one).view(1, -1, 1, 1) for one in (mean, std))
        return (latents - shift) * scale / spread
    return (latents - float(getattr(config, "shift_factor", None) or 0.0)) * scale


def _rows(latents: Tensor) -> Tensor:
    """[n, C, h, w] -> [n * h * w, C + 1], with a column of ones."""
    flat = latents.movedim(1, -1).flatten(0, 2)
    return torch.cat([flat, torch.ones(len(flat), 1)], dim=1)


def _random_pictures(side: int) -> Tensor:
    """[n, 3, side, side] in -1..1: fields of random colours, some with edges, some smooth."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for number in range(_PICTURES):
        cells = (2, 3, 5, 8)[number % 4]
        colours = torch.rand(1, 3, cells, cells, generator=generator) * 2 - 1
        mode = "nearest" if number % 3 else "bicubic"
        made.append(functional.interpolate(colours, size=(side, side), mode=mode).clamp(-1, 1))
    return torch.cat(made)


# ── what a step predicts ────────────────────────────────────────────────────────────────────────


class Observer:
    """Remembers the last call of a pipeline's denoiser; computes nothing until it is asked."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self._denoiser: Any = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
        self._call: tuple[Tensor, Any, Tensor] | None = None

    @contextmanager
    def observing(self) -> Iterator[None]:
        if self._denoiser is None:
            yield
            return
        handle = self._denoiser.register_forward_hook(self._remember, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()
            self._call = None

    def _remember(self, _: Any, args: Any, kwargs: Any, output: Any) -> None:
        sample = args[0] if args else kwargs.get("sample", kwargs.get("hidden_states"))
        time = args[1] if len(args) > 1 else kwargs.get("timestep")
        self._call = sample, time, output[0] if isinstance(output, tuple) else output.sample

    def predicted(self, rows: range, count: int) -> Tensor:
        """The predicted x0 of these pictures of a batch of `count`, [n, C, h, w].

        Raises OptionError.
        """
        if self._call is None or self._call[0].ndim != 4:
            raise OptionError(
                f"a preview of a {type(self._pipe).__name__}",
                reason="its latents are not [n, C, h, w], as those of SD and SDXL are",
                hint="Use on_image.",
            )
        sample, time, output = (x.detach() if torch.is_tensor(x) else x for x in self._call)
        channels = self._pipe.vae.config.latent_channels
        sample, output = sample[:, :channels].float(), output[:, :channels].float()
        guided = bool(getattr(self._pipe, "do_classifier_free_guidance", False))
        if len(output) == 2 * count and guided:
            negative, positive = output.chunk(2)
            output = negative + self._pipe.guidance_scale * (positive - negative)
            sample = sample[-count:]
        elif len(output) != count:
            raise OptionError(
                f"a preview of a {type(self._pipe).__name__}",
                reason=f"how it combines {len(output)} rows into {count} picture(s) is not known",
                hint="Use on_image.",
            )
        time = torch.as_tensor(time).reshape(-1)[0].float().cpu()
        return self._x0(sample, output, float(time))[rows.start : rows.stop]

    def _x0(self, sample: Tensor, output: Tensor, time: float) -> Tensor:
        """From the denoiser's own input: the scaled one, so that Euler's is DDIM's."""
        scheduler = self._pipe.scheduler
        kept = getattr(scheduler, "alphas_cumprod", None)
        if kept is None or scheduler.config.prediction_type == "flow_prediction":
            sigma = time / float(scheduler.config.num_train_timesteps)
            return sample - sigma * output
        alpha = _at(kept, time)
        kind = scheduler.config.prediction_type
        if kind == "sample":
            return output
        signal, noise = math.sqrt(alpha), math.sqrt(1 - alpha)
        if kind == "v_prediction":
            return signal * sample - noise * output
        return (sample - noise * output) / signal


def _at(values: Tensor, place: float) -> float:
    """The value at a place between two entries; Euler's timesteps are not whole numbers."""
    place = min(max(place, 0.0), len(values) - 1.0)
    low = int(place)
    high = min(low + 1, len(values) - 1)
    return float(values[low]) + (place - low) * float(values[high] - values[low])
