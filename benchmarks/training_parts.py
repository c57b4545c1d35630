"""What the training benchmarks compare: the reference recipe and ours, on random weights.

The reference step is the published recipe: everything is encoded in every step, the denoiser is
float32 under bfloat16 autocast, AdamW is plain, attention is diffusers' own IP-Adapter. Ours is the
package's objective on a base frozen in bfloat16, with the trainer's optimiser and clipping.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bases import SD15, SDXL, Base, fill, random_unet
from peer import diffusers_load, published_adapter

DTYPE = torch.bfloat16
CLIP_L = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
VIT_H = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 224,
    "projection_dim": 1024,
}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}


@dataclass(frozen=True)
class Parts:
    """The configs of all models in a training step."""

    base: Base
    vae: dict[str, Any] = field(default_factory=lambda: VAE)
    text: dict[str, Any] = field(default_factory=lambda: CLIP_L)
    vision: dict[str, Any] = field(default_factory=lambda: VIT_H)
    options: dict[str, Any] = field(default_factory=dict)  # of our adapter

    @property
    def factor(self) -> int:
        """Pixels per latent, per side."""
        return int(2 ** (len(self.vae["block_out_channels"]) - 1))

    def positions(self) -> int:
        """Number of positions in the vision tower's hidden states."""
        return int((self.vision["image_size"] // self.vision["patch_size"]) ** 2) + 1


PARTS = {base.name: Parts(base) for base in (SD15, SDXL)}


def random_model(make: Callable[[], nn.Module], dtype: torch.dtype = DTYPE) -> Any:
    """A model with random weights, frozen."""
    with torch.device("meta"):
        model = make()
    model = model.to(dtype).to_empty(device="cpu")
    fill(model)
    for name, buffer in model.named_buffers():
        if name.endswith("position_ids"):
            buffer.copy_(torch.arange(buffer.shape[-1]).expand(buffer.shape))
    return model.eval().requires_grad_(False)


class EncoderSizes:
    """Stands for an encoder whose features are cached: only its sizes are known."""

    image_size, fingerprint = 0, ""

    def __init__(self, parts: Parts) -> None:
        self._config = parts.vision

    def width(self, feature: str) -> int:
        key = "projection_dim" if feature == "image_embeds" else "hidden_size"
        return int(self._config[key])

    def encode(self, *_: object) -> Tensor:
        raise NotImplementedError

    encode_null = encode


class FeatureExtractors:
    """VAE, text encoder and vision tower, which the reference runs in every step."""

    def __init__(self, parts: Parts, variant: str, side: int) -> None:
        from diffusers import AutoencoderKL
        from transformers import (
            CLIPTextConfig,
            CLIPTextModel,
            CLIPVisionConfig,
            CLIPVisionModelWithProjection,
        )

        self.vae = random_model(lambda: AutoencoderKL(**parts.vae))
        self.text = random_model(lambda: CLIPTextModel(CLIPTextConfig(**parts.text)))
        vision = CLIPVisionConfig(**parts.vision)
        self.vision = random_model(lambda: CLIPVisionModelWithProjection(vision))
        self.variant = variant
        gen = torch.Generator().manual_seed(1)
        image_size = parts.vision["image_size"]
        self.pixels = torch.randn(1, 3, side, side, generator=gen).to(DTYPE)
        self.words = torch.randint(0, 49000, (1, 77), generator=gen)
        self.image = torch.randn(1, 3, image_size, image_size, generator=gen).to(DTYPE)

    @torch.no_grad()
    def __call__(self) -> tuple[Tensor, Tensor, Tensor]:
        """Latents, text states and image features of one captioned picture."""
        latents = self.vae.encode(self.pixels).latent_dist.sample()
        latents = latents * self.vae.config.scaling_factor
        states = self.text(self.words).last_hidden_state
        if self.variant == "base":
            return latents, states, self.vision(self.image).image_embeds
        features = self.vision(self.image, output_hidden_states=True).hidden_states[-2]
        return latents, states, features


class Reference:
    """The published recipe, batch 1."""

    def __init__(self, parts: Parts, variant: str, encoders: FeatureExtractors) -> None:
        from diffusers import DDPMScheduler

        base = parts.base
        self.encoders, self.scheduler = encoders, DDPMScheduler()
        unet: Any = random_unet(base, torch.float32)
        state = published_adapter(unet, variant, base.cross_attention_dim, dtype=torch.float32)
        self.unet: Any = diffusers_load(unet, state).requires_grad_(False)
        trained = [self.unet.encoder_hid_proj.image_projection_layers]
        trained += [p for p in self.unet.attn_processors.values() if hasattr(p, "to_k_ip")]
        self.parameters = [p for module in trained for p in module.parameters()]
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        self.optimiser = torch.optim.AdamW(self.parameters, lr=1e-4, weight_decay=0.01)

    def step(self) -> float:
        latents, states, features = self.encoders()
        noise = torch.randn_like(latents)
        times = torch.randint(0, 1000, (1,))
        noisy = self.scheduler.add_noise(latents, noise, times)
        with torch.autocast("cpu", DTYPE):
            added = {"image_embeds": [features[:, None]]}
            prediction = self.unet(noisy, times, states, added_cond_kwargs=added).sample
        loss = F.mse_loss(prediction.float(), noise.float())
        loss.backward()
        self.optimiser.step()
        self.optimiser.zero_grad()
        return float(loss.detach())


class Ours:
    """The package's training step, batch 1; features are cached unless `encoders` are passed."""

    def __init__(
        self, parts: Parts, variant: str, side: int, *, checkpointing: bool = False
    ) -> None:
        from diffusers import DDPMScheduler

        import imageprompt as ip
        from imageprompt.training.loop.objective import NullConditions, Objective
        from imageprompt.training.loop.training_state import decay_groups
        from imageprompt.training.memory.activation_checkpointing import (
            enable_selective_checkpointing,
        )
        from imageprompt.training.memory.cpu_attention import use_blocked_attention

        base = parts.base
        self.unet: Any = random_unet(base, DTYPE)
        use_blocked_attention(self.unet)
        if checkpointing:
            enable_selective_checkpointing(self.unet)

        self.adapter = ip.Adapter.create(
            variant, denoiser=self.unet, encoder=EncoderSizes(parts), **parts.options
        )
        self.adapter.attach(self.unet)
        named = list(self.adapter.module.named_parameters())
        self.parameters = [parameter for _, parameter in named]
        groups = decay_groups(named, 0.01)
        self.optimiser = torch.optim.AdamW(groups, lr=1e-4, fused=True)
        gen = torch.Generator().manual_seed(2)
        noise = partial(torch.randn, generator=gen)
        shape: tuple[int, ...] = (parts.vision["projection_dim"],)
        if variant != "base":
            shape = (parts.positions(), parts.vision["hidden_size"])
        latent = side // parts.factor
        self.cached = (
            noise(1, 4, latent, latent),
            noise(1, 77, base.cross_attention_dim),
            noise(1, *shape),
        )
        self.added: dict[str, Tensor] = {}
        if base.pooled:
            sizes = torch.tensor([[1024.0, 1024, 0, 0, 1024, 1024]])
            self.added = {"text_embeds": noise(1, base.pooled), "time_ids": sizes}
        self.nulls = NullConditions(self.cached[1] * 0, self.cached[2] * 0)
        self.objective, self.scheduler, self.turn = Objective(), DDPMScheduler(), 0

    def step(self, encoders: FeatureExtractors | None = None) -> float:
        from imageprompt.training.data.dataset import Batch, RandomStreams

        latents, states, features = encoders() if encoders else self.cached
        batch = Batch(latents.float(), states, features, self.added)
        self.turn += 1
        streams = RandomStreams([self.turn], self.turn)
        with self.objective.loss(
            self.adapter, self.unet, self.scheduler, batch, self.nulls, streams
        ) as (losses, _):
            losses.mean().backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return float(losses.detach().mean())
