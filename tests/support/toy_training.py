"""A training run that takes seconds: a random denoiser, twelve samples that are easy to learn."""

from __future__ import annotations

import copy
import json
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

import imageprompt as ip
from imageprompt.training.config.config import TrainingConfig
from imageprompt.training.data.dataset import Batch, Dataset, RandomStreams
from imageprompt.training.loop.trainer import Trainer

TEXT, WIDTH = 16, 24


class Toy(Dataset):
    """Random latents, texts and features; each feature contains the mean of its latent."""

    def __init__(self, pause: float = 0.0) -> None:
        self.pause = pause

    def __len__(self) -> int:
        return 12

    def batch(self, indices: Tensor, streams: RandomStreams) -> Batch:
        time.sleep(self.pause)
        level = indices.float() / 6 - 1
        features = torch.zeros(len(indices), WIDTH)
        features[:, 0] = level
        latents = level.reshape(-1, 1, 1, 1) + 0.1 * streams.randn(4, 8, 8)
        return Batch(latents, torch.zeros(len(indices), 3, TEXT), features)

    def null_text(self) -> Tensor:
        return torch.zeros(1, 3, TEXT)

    def null_features(self) -> Tensor:
        return torch.zeros(1, WIDTH)


@lru_cache
def denoiser() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            down_block_types=("CrossAttnDownBlock2D",),
            up_block_types=("CrossAttnUpBlock2D",),
            block_out_channels=(16,),
            layers_per_block=1,
            attention_head_dim=2,
            cross_attention_dim=TEXT,
            norm_num_groups=4,
        )


@lru_cache
def vision() -> Any:
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        projection_dim=WIDTH,
    )
    with torch.random.fork_rng():
        return CLIPVisionModelWithProjection(config)


def new_adapter(unet: Any) -> ip.Adapter:
    return ip.Adapter.create("base", denoiser=unet, encoder=vision(), num_tokens=2)


def trainer(
    folder: Path, *, samples: Dataset | None = None, more: Any = None, **settings: Any
) -> Trainer:
    """A run of eight steps of five samples, unless `settings` change that."""
    unet = copy.deepcopy(denoiser())
    torch.manual_seed(2)
    adapter = new_adapter(unet)
    adapter.attach(unet)
    defaults = {"steps": 8, "batch_size": 5, "learning_rate": 1e-3, "warmup": 2}
    defaults |= {"schedule": "cosine", "decay_from": 0.7}
    config = TrainingConfig(data="toy", output=str(folder), **defaults | settings)
    scheduler = DDIMScheduler()
    return Trainer(adapter, unet, scheduler, samples or Toy(), config, Path(folder), **(more or {}))


def weights(run: Trainer) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in run.named.items()}


def same(a: Trainer, b: Trainer) -> bool:
    """Whether weights, averages and optimiser are equal to the bit."""
    pairs = [(a.named, b.named), (a.ema.average, b.ema.average)]
    pairs += [
        (a.optimiser.state[a.named[name]], b.optimiser.state[b.named[name]]) for name in a.named
    ]
    return all(torch.equal(left[name], right[name]) for left, right in pairs for name in left)


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without the values that depend on the clock."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if k not in ("pictures_per_second", "eta_seconds")}
        for line in lines
    ]


def import_all() -> None:
    """Import what a run imports when it needs it: in each process that is forked from this one,
    it would take seconds."""
    import accelerate.tracking  # noqa: F401
    import torch.distributed
    import torch.nn.parallel
    import torch.utils.tensorboard  # noqa: F401

    import imageprompt.checkpoint.write  # noqa: F401

    new_adapter(denoiser())
