"""Train the base: text encoder and UNet together, on the latents and captions of the pool.

v-prediction, zero terminal SNR, cosine schedule. Several processes can train together: each takes
its own steps, and their parameters are averaged every few steps (`--rank R --world W`).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from bundled_stack import pool
from bundled_stack.latents import load_latents
from bundled_stack.timed_run import TimedRun
from bundled_stack.tokenizer import LENGTH, build_tokenizer
from imageprompt.demo import scenes

BATCH = 32
SYNC = 4  # steps between two averages over the processes
UNET: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 16,
    "out_channels": 16,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "block_out_channels": [96, 160],
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "cross_attention_dim": 128,
}
TEXT: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": LENGTH,
    "projection_dim": 128,
}
SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 1,
}


class Base(nn.Module):
    """Text encoder and UNet as one trainable module."""

    def __init__(self) -> None:
        super().__init__()
        from diffusers import UNet2DConditionModel
        from diffusers.models.attention_processor import AttnProcessor
        from transformers import CLIPTextConfig, CLIPTextModel

        torch.manual_seed(3)
        tokenizer = build_tokenizer()
        config = CLIPTextConfig(
            **TEXT,
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        self.text: Any = CLIPTextModel(config)
        self.text.set_attn_implementation("eager")
        with torch.no_grad():
            for name, weight in self.text.named_parameters():
                if "embedding" in name:
                    nn.init.normal_(weight, std=0.5 if "token" in name else 0.2)
                elif weight.ndim == 2:
                    nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
        self.unet: Any = UNet2DConditionModel(**UNET).to(memory_format=torch.channels_last)
        self.unet.set_attn_processor(AttnProcessor())  # trains 1.6 times faster than SDPA on a CPU

    def forward(self, noisy: Tensor, times: Tensor, tokens: Tensor) -> Tensor:
        """The UNet's prediction for noisy latents [b, 16, 8, 8] and token ids [b, 24]."""
        states = self.text(tokens).last_hidden_state
        output: Tensor = self.unet(noisy, times, encoder_hidden_states=states, return_dict=False)[0]
        return output


def scheduler() -> Any:
    """The noise schedule of the stack."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(**SCHEDULER)


def draw_times(count: int, generator: torch.Generator) -> Tensor:
    """Timesteps: 30 % uniform, 70 % where the outline is decided: sigmoid(N(.35, .8))."""
    uniform = torch.rand(count, generator=generator)
    middle = torch.sigmoid(0.35 + 0.8 * torch.randn(count, generator=generator))
    pick = torch.rand(count, generator=generator) < 0.3
    return (torch.where(pick, uniform, middle) * 1000).long().clamp(0, 999)


class Captions:
    """Token ids of captions, without a tokenizer call per sample."""

    def __init__(self, words: list[str] | None = None) -> None:
        words = words or scenes.all_words()
        tokenizer = build_tokenizer(words)
        self.start, self.end = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.ids = {word: tokenizer(word, add_special_tokens=False).input_ids[0] for word in words}
        sample = "a striped red star on a plain blue background"
        assert tokenizer(sample, padding="max_length").input_ids == self.encode(sample)

    def encode(self, text: str) -> list[int]:
        """Padded ids of one caption."""
        ids = [self.start, *(self.ids[word] for word in text.split()), self.end]
        return ids + [self.end] * (LENGTH - len(ids))


def average(run: TimedRun, world: int) -> float:
    """Average parameters over the processes; returns their mean progress, the same on all."""
    values = list(run.named.values())
    with torch.no_grad():
        flat = torch.cat([*(value.reshape(-1) for value in values), torch.tensor([run.progress])])
        dist.all_reduce(flat)
        flat /= world
        start = 0
        for value in values:
            value.copy_(flat[start : start + value.numel()].view_as(value))
            start += value.numel()
    return float(flat[-1])


def train(work: Path, minutes: float, rank: int = 0, world: int = 1, compiled: bool = True) -> None:
    """Train for this many minutes; an unfinished run is resumed."""
    if world > 1:
        rendezvous = f"file://{(work / 'rendezvous').absolute()}"
        dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world)
    model = Base()
    name = f"base-{rank}"
    forward = torch.compile(model) if compiled else model
    run = TimedRun(work, name, model, minutes=minutes, rate=1.2e-3, ema=0.9985, flat=0.7, every=150)
    latents = load_latents(work)
    all_scenes = pool.load_scenes(work / "pool")
    captions, noise_schedule = Captions(), scheduler()
    rng = np.random.default_rng([5, rank, run.steps])
    generator = torch.Generator().manual_seed(1000 * run.steps + rank)
    progress = run.progress
    while progress < 1:
        chosen = rng.integers(len(latents), size=BATCH)
        clean = latents[chosen].float()
        text = [scenes.random_caption(all_scenes[i], rng, full=0.5, empty=0.1) for i in chosen]
        noise = torch.randn(clean.shape, generator=generator)
        times = draw_times(BATCH, generator)
        noisy = noise_schedule.add_noise(clean, noise, times)
        target = noise_schedule.get_velocity(clean, noise, times)
        tokens = torch.tensor([captions.encode(line) for line in text])
        with torch.autocast("cpu", torch.bfloat16):
            prediction = forward(noisy.contiguous(memory_format=torch.channels_last), times, tokens)
        run.step(F.mse_loss(prediction.float(), target), BATCH, {})
        if world == 1:
            progress = run.progress
        elif run.steps % SYNC == 0:
            progress = average(run, world)
    run.save()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("minutes", type=float)
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--world", type=int, default=1)
    parser.add_argument("--eager", dest="compiled", action="store_false", help="no torch.compile")
    train(**vars(parser.parse_args()))
