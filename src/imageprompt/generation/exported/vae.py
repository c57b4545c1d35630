"""A VAE that a runtime computes; without weights where it decodes and encodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from imageprompt.generation.exported.denoiser import without_weights

if TYPE_CHECKING:
    from imageprompt.generation.runtimes import Graph

DECODER, ENCODER = "vae-decoder", "vae-encoder"


def stand_in(kind: Any, config: Mapping[str, Any], decoder: Graph, encoder: Graph) -> Any:
    """A VAE of class `kind` (AutoencoderKL) whose two sides are graphs."""
    with torch.device("meta"):
        vae: Any = kind.from_config(dict(config))
    without_weights(vae)

    def decode(z: Tensor, return_dict: bool = True, generator: Any = None) -> Any:
        from diffusers.models.autoencoders.vae import DecoderOutput

        made = decoder({"latents": z.float()})[0].to(z.dtype)
        return DecoderOutput(sample=made) if return_dict else (made,)

    def encode(x: Tensor, return_dict: bool = True) -> Any:
        from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
        from diffusers.models.modeling_outputs import AutoencoderKLOutput

        found = DiagonalGaussianDistribution(encoder({"picture": x.float()})[0].to(x.dtype))
        return AutoencoderKLOutput(latent_dist=found) if return_dict else (found,)

    vae.decode, vae.encode = decode, encode
    return vae
