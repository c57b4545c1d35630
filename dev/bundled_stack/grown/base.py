"""Train the base of the grown world: text tower and SD3 transformer together, on captions.

Flow matching: the prediction is noise minus latents. The tower is the one of both text encoders.
Both start from the bundled SD3 stack, which knows half of the words; a head on the third block
says what each cell shows, much as representation alignment does (arXiv 2410.06940), and is not
exported. Two processes can train together (`--rank R --world 2`).
"""

from __future__ import annotations

import argparse
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from bundled_stack.base import SYNC, TEXT, Captions, average
from bundled_stack.checkpoints import load_state, save_atomic
from bundled_stack.grown import judge, pool, vae
from bundled_stack.grown.labels import (
    CELL_OUTPUTS,
    FINE,
    cell_loss,
    labels,
    near_objects,
    objects,
    offsets,
    outlines,
)
from bundled_stack.sd3.base import (
    TEXT_TOKENS,
    TRANSFORMER,
    ZERO_TOKENS,
    PlainAttention,
    draw_times,
)
from bundled_stack.stages import training_options
from bundled_stack.timed_run import TimedRun
from bundled_stack.tokenizer import build_tokenizer
from imageprompt.core import bundled
from imageprompt.demo import scenes_128 as scenes
from imageprompt.demo.judge_128 import CELLS

GUIDANCE, STEPS = 4.0, 20
# as many positions as the easy world's, so a step takes as long
SIZES = {"sample_size": scenes.SIZE // 8, "patch_size": 2, "pos_embed_max_size": 8}
MEAN_TIME = 0.8  # four times as many latents as in the easy world hide an object less
CELL_BLOCK, CELL_WEIGHT, OUTLINE_WEIGHT = 2, 0.05, 0.5
# a small object covers 3 % of the latents, so those near objects weigh as much again as .6 of all;
# below this share of noise it is settled where they are
NEAR_SHARE, SETTLED = 0.6, 0.8


class Base(nn.Module):
    """Text tower and transformer, and the head that names the cells while they train."""

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
        self.cells = nn.Linear(160, 4 * (CELL_OUTPUTS + FINE**2))
        _start_text(self.text)
        _start_transformer(self.transformer)
        self._rows: Tensor | None = None
        self.transformer.transformer_blocks[CELL_BLOCK].register_forward_hook(self._keep_rows)

    def _keep_rows(self, module: nn.Module, given: Any, found: tuple[Tensor, Tensor]) -> None:
        self._rows = found[1]

    def forward(
        self,
        noisy: Tensor,
        times: Tensor,
        tokens: Tensor,
        extra: int = 0,
        pooled_tokens: Tensor | None = None,
    ) -> Tensor:
        """Noise minus latents, for noisy latents, shares of noise and token ids [n, 24].

        `pooled_tokens`: the pooled embedding is of these instead.
        """
        out = self.text(tokens, output_hidden_states=True)
        states, pooled = out.hidden_states[-2], out.text_embeds
        if pooled_tokens is not None:
            pooled = self.text(pooled_tokens).text_embeds
        states = F.pad(torch.cat([states, states], 2), (0, 0, 0, extra))
        pooled = torch.cat([pooled, pooled], 1)
        found: Tensor = self.transformer(noisy, states, pooled, 1000 * times, return_dict=False)[0]
        return found

    def cell_outputs(self) -> list[Tensor]:
        """Outputs [n, 256, CELL_OUTPUTS] of the last call, and logits of outlines, [n, 256, 16].

        Each position has 2x2 cells.
        """
        assert self._rows is not None
        logits = self.cells(self._rows).unflatten(1, (CELLS // 2, CELLS // 2))
        cells = logits.unflatten(3, (2, 2, -1)).transpose(2, 3).flatten(1, 4)
        return list(cells.split([CELL_OUTPUTS, FINE**2], 2))


@torch.no_grad()
def _start_text(text: Any) -> None:
    """Words and layers of the bundled tower; the layer between its two starts as the identity."""
    from safetensors.torch import load_file

    old = load_file(bundled.folder(bundled.SD3) / "text_encoder" / "model.safetensors")
    start = {name: value.float() for name, value in old.items()}
    embedding = "text_model.embeddings.token_embedding.weight"
    table = text.state_dict()[embedding]
    nn.init.normal_(table, std=0.5)
    new, known = Captions(scenes.all_words()).ids, Captions().ids
    for word in new.keys() & known.keys():
        table[new[word]] = start[embedding][known[word]]
    table[-2:] = start[embedding][-2:]  # the tokens of start and end
    start[embedding] = table.clone()
    for name in list(start):
        if ".layers.1." in name:
            start[name.replace(".layers.1.", ".layers.2.")] = start[name]
            silent = name.endswith(("out_proj.weight", "out_proj.bias", "fc2.weight", "fc2.bias"))
            start[name] = torch.zeros_like(start[name]) if silent else start[name]
    text.load_state_dict(start)


@torch.no_grad()
def _start_transformer(transformer: Any) -> None:
    """The bundled transformer: of 2x2 latents it sees half the sum, and answers all four alike."""
    from safetensors.torch import load_file

    file = bundled.folder(bundled.SD3) / "transformer" / "diffusion_pytorch_model.safetensors"
    start = {name: value.float() for name, value in load_file(file).items()}
    own = transformer.pos_embed.proj.weight
    nn.init.xavier_uniform_(own.flatten(1))
    start["pos_embed.proj.weight"] = 0.5 * own + 0.5 * start["pos_embed.proj.weight"]
    for name in ("proj_out.weight", "proj_out.bias"):
        start[name] = torch.cat([start[name]] * 4)
    transformer.load_state_dict(start)


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


def matching_loss(prediction: Tensor, target: Tensor, times: Tensor, owners: Tensor) -> Tensor:
    """Mean squared error, in which latents of an object and beside it count more."""
    settled = (times < SETTLED)[:, None, None, None]
    return (near_weights(near_objects(owners) * settled) * (prediction - target) ** 2).mean()


def near_weights(near: Tensor) -> Tensor:
    """Weights of latents by whether they are near objects [n, 1, h, w]; few of them weigh more."""
    return 1 + NEAR_SHARE * near / near.mean((1, 2, 3), keepdim=True).clamp(min=0.02)


def told_less(line: str, scene: scenes.Scene, rng: np.random.Generator) -> str:
    """What the pooled embedding tells: the same, or less.

    An adapter's tokens stand for text states only. A base that reads shapes from the pooled
    embedding draws them worse without it.
    """
    chance = rng.random()
    if not line or chance < 0.4:
        return line
    return "" if chance < 0.75 else scenes.random_caption(scene, rng, full=0.0, empty=0.3)


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
    targets = labels(chosen).to(device)
    return pictures, judge.shares(judge.correct(judge.load(work, device), pictures, targets))


def train(options: argparse.Namespace) -> None:
    """Train for this many minutes and evaluate; an unfinished run is resumed."""
    work, device, rank, world = options.work, options.device, options.rank, options.world
    if world > 1:
        rendezvous = f"file://{(work / 'rendezvous').absolute()}"
        dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world)
    latents = Latents(work, options.count, device)
    all_scenes = list(islice(scenes.stream("train"), options.count))
    words, owners, where, edges = (
        made(all_scenes).to(device) for made in (labels, objects, offsets, outlines)
    )
    captions, values = Captions(scenes.all_words()), latents.values.to(device)
    often = pool.chances(all_scenes)
    model = Base().to(device)
    if device == "cpu":
        model.transformer.set_attn_processor(PlainAttention())
    if options.compiled:
        for block in model.transformer.transformer_blocks:
            block.compile(dynamic=False)
    run = TimedRun(
        work,
        f"base-{rank}",
        model,
        minutes=options.minutes,
        rate=options.rate,
        flat=0.4,
        every=120,
    )
    rng = np.random.default_rng([9, rank, run.steps])
    generator = torch.Generator().manual_seed(1000 * run.steps + rank)
    progress = run.progress
    while progress < 1:
        extra = int(rng.choice(list(ZERO_TOKENS), p=list(ZERO_TOKENS.values())))
        many = extra > TEXT_TOKENS  # take long, and are not worth a compilation: few, eager
        batch = options.batch // 4 if many else options.batch
        drawn = rng.choice(len(values), size=batch, p=often)
        chosen = torch.from_numpy(drawn).to(device)
        lines = [
            scenes.random_caption(all_scenes[index], rng, full=0.6, empty=0.1) for index in drawn
        ]
        told = [
            told_less(line, all_scenes[index], rng)
            for line, index in zip(lines, drawn, strict=True)
        ]
        tokens, pooled_tokens = (
            torch.tensor([captions.encode(line) for line in of]).to(device) for of in (lines, told)
        )
        clean = values[chosen].float()
        times = draw_times(batch, generator, MEAN_TIME).to(device)
        noise = torch.randn_like(clean)
        share = times[:, None, None, None]
        with (
            torch.compiler.set_stance("force_eager" if many else "default"),
            torch.autocast(device, torch.bfloat16),
        ):
            prediction = model(
                (1 - share) * clean + share * noise, times, tokens, extra, pooled_tokens
            )
            cells, drawn_edges = model.cell_outputs()
        match = matching_loss(prediction.float(), noise - clean, times, owners[chosen])
        named = cell_loss(cells, words[chosen], owners[chosen], where[chosen], even=True)
        outlined = F.binary_cross_entropy_with_logits(drawn_edges.float(), edges[chosen].float())
        run.step(
            match + CELL_WEIGHT * named + OUTLINE_WEIGHT * outlined,
            batch,
            {"match": match, "cells": named, "outlines": outlined},
        )
        if world == 1:
            progress = run.progress
        elif run.steps % SYNC == 0:
            progress = average(run, world)
    run.save()
    if rank == 0:
        model.load_state_dict(run.ema_state())
        run.log(**evaluate(model.eval(), work, latents, options)[1])


if __name__ == "__main__":
    parser = training_options(batch=32, rate=2.5e-3)
    parser.add_argument("--pictures", type=int, default=500, help="to judge in the end")
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--world", type=int, default=1)
    train(parser.parse_args())
