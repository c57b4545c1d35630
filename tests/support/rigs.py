"""A denoiser, a random adapter file for it and our Adapter loaded from that file, ready to test."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import imageprompt as ip
from hosts_table import ADAPTERS, CASES, AdapterCase, HostCase, adapter_state
from imageprompt.control import DEFAULT_SCALE
from peer import StateDict, diffusers_embeds, diffusers_load, flat


def write_adapter(state: StateDict, path: Path) -> Path:
    """Write a standard adapter file, `.bin` or `.safetensors` by its suffix."""
    if path.suffix == ".bin":
        torch.save(state, path)
    else:
        save_file({key: value.contiguous() for key, value in flat(state).items()}, path)
    return path


@dataclass
class Rig:
    """One host case with one adapter case, from both sides."""

    host: HostCase
    kind: AdapterCase
    unet: nn.Module
    state: StateDict
    path: Path
    adapter: Any

    def prompt(self, *references: int, seed: int = 5, null: bool = True) -> Any:
        """An image prompt; `references` gives the number of pictures for each prompt."""
        return self.adapter.encode(
            features=self.features(*references, seed=seed),
            null_features=self.kind.null_features() if null else None,
        )

    def features(self, *references: int, seed: int = 5) -> list[Tensor]:
        """Features [n, ...] for each prompt, all different."""
        return [self.kind.features(n, seed=seed + i) for i, n in enumerate(references or (1,))]

    def ours(
        self, inputs: dict[str, Any], prompt: Any, *, scale: Any = DEFAULT_SCALE, **use: Any
    ) -> Tensor:
        """The denoiser's output with our adapter attached; detached again afterwards."""
        self.adapter.attach(self.unet)
        try:
            with self.adapter.use(prompt, scale=scale, **use):
                return self.host.read(self.unet, inputs)
        finally:
            self.adapter.detach()

    def theirs(
        self,
        inputs: dict[str, Any],
        features: list[Tensor],
        *,
        scale: float = DEFAULT_SCALE,
        guidance: bool = True,
    ) -> Tensor:
        """The output of a copy of the denoiser with diffusers' own IP-Adapter."""
        unet = diffusers_load(copy.deepcopy(self.unet), self.state, scale=scale)
        null = self.kind.null_features() if guidance else None
        embeds = diffusers_embeds(features, null)
        added = {**inputs.get("added_cond_kwargs", {}), "image_embeds": [embeds]}
        return self.host.read(unet, {**inputs, "added_cond_kwargs": added})


def build(
    host: str | HostCase,
    kind: str | AdapterCase,
    folder: Path,
    *,
    suffix: str = ".safetensors",
    dtype: torch.dtype = torch.float32,
    seed: int = 3,
) -> Rig:
    """Make a rig; files go to `folder`."""
    case = CASES[host] if isinstance(host, str) else host
    adapter_case = ADAPTERS[kind] if isinstance(kind, str) else kind
    unet = case.unet(dtype=dtype)
    state = adapter_state(unet, adapter_case, case.cross_dim, seed=seed)
    path = write_adapter(state, folder / f"adapter-{seed}{suffix}")
    return Rig(case, adapter_case, unet, state, path, ip.Adapter.load(path, dtype=dtype))


def difference(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference."""
    assert a.shape == b.shape
    return (a - b).abs().max().item()


def bare_pipeline(unet: Any) -> Any:
    """A StableDiffusionPipeline round this UNet, without text encoder."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline

    vae = AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4)
    vae.register_to_config(scaling_factor=1.0)
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        unet=unet,
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
