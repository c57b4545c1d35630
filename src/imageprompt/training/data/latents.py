"""Latents as denoisers are trained on them: pictures encoded by the base's VAE, and scaled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from imageprompt.core.errors import OptionError, WrongBaseError
from imageprompt.training.data.views import Size, to_pixels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.Image import Image


@dataclass(frozen=True)
class LatentScaling:
    """From the VAE encoder's output to the latents that the denoiser is trained on.

    `factor` and `shift` are one number each, or one per channel.
    """

    factor: float | tuple[float, ...] = 1.0
    shift: float | tuple[float, ...] = 0.0
    random: bool = True
    """Is the output a mean and a log variance, and not the latents themselves?"""
    patch: int = 1
    """So many positions on a side become channels of one, before they are scaled (FLUX.2)."""

    def channels(self, moments: Tensor) -> int:
        """The channels of the noise that makes latents of these moments."""
        return moments.shape[1] // 2 if self.random else moments.shape[1]

    def sample(self, moments: Tensor, noise: Tensor) -> Tensor:
        """Moments [n, 2c, h, w] (mean, log variance) and noise [n, c, h, w] -> float32 latents.

        [n, c, h, w] or, with a patch p, [n, p^2 c, h/p, w/p].
        """
        latents = moments.float()
        if self.random:
            mean, log_variance = latents.chunk(2, dim=1)
            latents = mean + torch.exp(0.5 * log_variance.clamp(-30, 20)) * noise
        latents = torch.nn.functional.pixel_unshuffle(latents, self.patch)
        return (latents - _per_channel(self.shift)) * _per_channel(self.factor)


def _per_channel(value: float | tuple[float, ...]) -> float | Tensor:
    return value if isinstance(value, float) else torch.tensor(value).reshape(-1, 1, 1)


@dataclass(frozen=True)
class Vae:
    """The VAE of a base, for single pictures."""

    model: Any

    @classmethod
    def of(cls, pipe: Any) -> Vae:
        """Raises WrongBaseError for a base without a VAE."""
        model = getattr(pipe, "vae", None)
        known = ("scaling_factor", "latents_mean", "batch_norm_eps")
        if model is None or not any(hasattr(model.config, name) for name in known):
            raise WrongBaseError(
                "this base",
                reason="has no VAE that encodes pictures as latents",
                hint="Train on a latent diffusion pipeline.",
            )
        return cls(model)

    @property
    def scaling(self) -> LatentScaling:
        """Per channel for the VAEs of videos (Qwen-Image, Wan), and for FLUX.2's batch norm."""
        config = self.model.config
        if self._patch > 1:
            norm = self.model.bn
            deviation = torch.sqrt(norm.running_var.float() + config.batch_norm_eps)
            mean, factor = norm.running_mean.float().tolist(), (1 / deviation).tolist()
            return LatentScaling(tuple(factor), tuple(mean), patch=self._patch)
        if self._is_video:
            std = config.latents_std
            return LatentScaling(tuple(1 / one for one in std), tuple(config.latents_mean))
        shift = float(getattr(config, "shift_factor", 0) or 0)
        return LatentScaling(float(config.scaling_factor), shift, self._is_random)

    @property
    def factor(self) -> int:
        """Pixels per latent along a side."""
        return self._own_factor * self._patch

    @property
    def _own_factor(self) -> int:
        """Pixels per position of the encoder's output along a side."""
        config = self.model.config
        if self._is_video:
            stated = getattr(config, "scale_factor_spatial", None)
            return int(stated or 2 ** len(config.temperal_downsample))
        names = ("block_out_channels", "encoder_block_out_channels")
        blocks = next(getattr(config, name) for name in names if hasattr(config, name))
        return int(2 ** (len(blocks) - 1))

    @property
    def channels(self) -> int:
        """Channels of a latent."""
        return self._own_channels * self._patch**2

    @property
    def _own_channels(self) -> int:
        return int(self.model.config.z_dim if self._is_video else self.model.config.latent_channels)

    def moment_kind(self, size: Size) -> tuple[torch.dtype, tuple[int, ...]]:
        """Type and shape of the moments of a picture of this size in pixels."""
        width, height = (side // self._own_factor for side in size)
        parts = 2 if self.scaling.random else 1
        return self.model.dtype, (parts * self._own_channels, height, width)

    @torch.no_grad()
    def encode(self, pictures: Sequence[Image]) -> Tensor:
        """RGB pictures of one size -> mean and log variance [n, 2c, h, w], or latents [n, c, h, w].

        Raises OptionError if they are not finite.
        """
        pixels = to_pixels(pictures).to(self.model.device, self.model.dtype)
        encoded = self.model.encode(pixels.unsqueeze(2) if self._is_video else pixels)
        moments: Tensor = encoded.latent_dist.parameters if self._is_random else encoded.latent
        if not torch.isfinite(moments).all():
            raise OptionError(
                f"the VAE in {self.model.dtype}".replace("torch.", ""),
                reason="produces latents that are not finite",
                hint="Use mixed_precision: bf16 or no.",
            )
        return (moments.squeeze(2) if self._is_video else moments).cpu()

    @property
    def _is_video(self) -> bool:
        return hasattr(self.model.config, "latents_mean") and hasattr(self.model.config, "z_dim")

    @property
    def _patch(self) -> int:
        """FLUX.2 normalises latents after it has made channels of 2 x 2 positions."""
        config = self.model.config
        return int(config.patch_size[0]) if hasattr(config, "batch_norm_eps") else 1

    @property
    def _is_random(self) -> bool:
        """The deep compression autoencoder of Sana is an encoder without a variance."""
        return not hasattr(self.model.config, "encoder_block_out_channels")
