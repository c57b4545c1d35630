"""Train the base of the grown world: text tower and SD3 transformer together, on captions.

Flow matching: the prediction is noise minus latents. The tower is the one of both text encoders.
"""

from __future__ import annotations

import argparse
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bundled_stack.base import TEXT, Captions
from bundled_stack.checkpoints import load_state, save_atomic
from bundled_stack.grown import judge, pool, scenes, vae
from bundled_stack.sd3.base import TRANSFORMER, PlainAttention, draw_times
from bundled_stack.timed_run import TimedRun
from bundled_stack.tokenizer import build_tokenizer

GUIDANCE, STEPS = 4.0, 20
# as many positions as the easy world's, so a step takes as long
SIZES = {"sample_size": scenes.SIZE // 8, "patch_size": 2, "pos_embed_max_size": 8}
EXTRA_TOKENS = {0: 0.7, 24: 0.3}  # zeros that the pipeline adds for a T5, and how often


class Base(nn.Module):
    """Text tower and transformer; every block of the transformer starts as the identity."""

    def __init__(self) -> None:
        super().__init__()
        from diffusers import SD3Transformer2DModel
        from transformers import CLIPTextConfig, CLIPTextModelWithProjection

        torch.manual_seed(5)
        tokenizer = build_tokenizer(scenes.all_words())
        config = CLIPTextConfig(
            **TEXT | {"num_hidden_layers": 3},
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        self.text: Any = CLIPTextModelWithProjection(config)
        self.text.set_attn_implementation("eager")
        self.transformer: Any = SD3Transformer2DModel(**TRANSFORMER | SIZES)
        _initialise(self.text, self.transformer)

    def forward(self, noisy: Tensor, times: Tensor, tokens: Tensor, extra: int = 0) -> Tensor:
        """Noise minus latents, for noisy latents, shares of noise and token ids [n, 24]."""
        out = self.text(tokens, output_hidden_states=True)
        states, pooled = out.hidden_states[-2], out.text_embeds
        states = F.pad(torch.cat([states, states], 2), (0, 0, 0, extra))
        pooled = torch.cat([pooled, pooled], 1)
        found: Tensor = self.transformer(noisy, states, pooled, 1000 * times, return_dict=False)[0]
        return found


@torch.no_grad()
def _initialise(text: Any, transformer: Any) -> None:
    for name, weight in text.named_parameters():
        if "embedding" in name:
            nn.init.normal_(weight, std=0.5 if "token" in name else 0.2)
        elif weight.ndim == 2:
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
    for name, weight in transformer.named_parameters():
        if name.endswith(".bias") or "norm1" in name or name.startswith(("norm_out", "proj_out")):
            nn.init.zeros_(weight)
        elif "timestep_embedder" in name:
            nn.init.normal_(weight, std=0.02)
        elif weight.ndim > 1:
            nn.init.xavier_uniform_(weight.flatten(1))


class Latents:
    """The latents of the training pictures, with mean 0 in each channel and deviation 1."""

    def __init__(self, work: Path, count: int, device: str) -> None:
        target = work / f"latents-{count}.ckpt"
        if not target.exists():
            save_atomic(_encode(work, count, device), target)
        state = load_state(target)
        self.values, self.mean, self.scale = state["values"], state["mean"], state["scale"]

    def decoded(self, model: Any, latents: Tensor) -> Tensor:
        """Pictures in -1..1 of normalised latents."""
        raw = latents / self.scale + self.mean.to(latents.device)
        return torch.cat([model.decode(part).sample for part in raw.split(100)]).clamp(-1, 1)


@torch.no_grad()
def _encode(work: Path, count: int, device: str) -> dict[str, Any]:
    pool.make(work, "train", count)
    model, pictures = vae.load(work, device), pool.load(work, "train", count)
    parts = [
        model.encode(pool.to_float(part.to(device))).latent_dist.mode().half().cpu()
        for part in pictures.split(128)
    ]
    values = torch.cat(parts)
    some = values[:4096].float()
    mean = some.mean((0, 2, 3))[None, :, None, None]
    scale = float(1 / (some - mean).std())
    return {"values": ((values - mean) * scale).half(), "mean": mean, "scale": scale}


@torch.no_grad()
def sample(model: Base, tokens: Tensor, empty: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Latents of captions by Euler's method, with guidance."""
    generator = torch.Generator().manual_seed(11)
    x = torch.randn(len(tokens), *shape, generator=generator).to(tokens.device)
    both = torch.cat([empty.expand_as(tokens), tokens])
    shares = torch.linspace(1, 0, STEPS + 1)
    for now, following in pairwise(shares):
        times = torch.full((len(both),), float(now), device=tokens.device)
        without, with_text = model(torch.cat([x, x]), times, both).float().chunk(2)
        x = x + float(following - now) * (without + GUIDANCE * (with_text - without))
    return x


def evaluate(model: Base, work: Path, latents: Latents, options: argparse.Namespace) -> Any:
    """Draw full captions of test scenes: the pictures, and what the judge reads in them."""
    captions = Captions(scenes.all_words())
    chosen = list(islice(scenes.stream("test", seed=5), options.pictures))
    device = options.device
    tokens = torch.tensor([captions.encode(scenes.caption(scene)) for scene in chosen]).to(device)
    empty = torch.tensor([captions.encode("")]).to(device)
    shape = tuple(latents.values.shape[1:])
    drawn = torch.cat([sample(model, part, empty, shape) for part in tokens.split(250)])
    pictures = latents.decoded(vae.load(work, device), drawn)
    targets = judge.labels(chosen).to(device)
    return pictures, judge.shares(judge.correct(judge.load(work, device), pictures, targets))


def train(options: argparse.Namespace) -> None:
    """Train for this many minutes and evaluate; an unfinished run is resumed."""
    work, device = options.work, options.device
    latents = Latents(work, options.count, device)
    all_scenes = list(islice(scenes.stream("train"), options.count))
    captions, values = Captions(scenes.all_words()), latents.values.to(device)
    model = Base().to(device)
    if device == "cpu":
        model.transformer.set_attn_processor(PlainAttention())
    if options.compiled:
        for block in model.transformer.transformer_blocks:
            block.compile(dynamic=False)
    run = TimedRun(
        work,
        "base",
        model,
        minutes=options.minutes,
        rate=options.rate,
        flat=0.4,
        every=120,
    )
    rng = np.random.default_rng([9, run.steps])
    generator = torch.Generator().manual_seed(run.steps)
    while not run.done:
        extra = int(rng.choice(list(EXTRA_TOKENS), p=list(EXTRA_TOKENS.values())))
        chosen = rng.integers(len(values), size=options.batch)
        lines = [
            scenes.random_caption(all_scenes[index], rng, full=0.6, empty=0.1) for index in chosen
        ]
        tokens = torch.tensor([captions.encode(line) for line in lines]).to(device)
        clean = values[torch.from_numpy(chosen).to(device)].float()
        times = draw_times(options.batch, generator).to(device)
        noise = torch.randn_like(clean)
        share = times[:, None, None, None]
        with torch.autocast(device, torch.bfloat16):
            prediction = model((1 - share) * clean + share * noise, times, tokens, extra)
        run.step(F.mse_loss(prediction.float(), noise - clean), options.batch, {})
    model.load_state_dict(run.ema_state())
    run.log(**evaluate(model.eval(), work, latents, options)[1])


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("minutes", type=float)
    parser.add_argument("--count", type=int, default=65_536, help="pictures to train on")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=2.5e-3)
    parser.add_argument("--pictures", type=int, default=500, help="to judge in the end")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compiled", action="store_true")
    train(parser.parse_args())
