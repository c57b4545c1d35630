"""Train the transformer of the SD3 stack on the latents and captions of the pool.

Flow matching: the prediction is noise minus latents. The text tower stays as it is.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bundled_stack import pool
from bundled_stack.latents import load_latents
from bundled_stack.sd3.text import CaptionEncoder, TextStates
from bundled_stack.timed_run import TimedRun
from imageprompt.demo import scenes

BATCH = 32
TRANSFORMER: dict[str, Any] = {
    "sample_size": 8,
    "patch_size": 1,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 6,
    "num_attention_heads": 5,
    "attention_head_dim": 32,
    "joint_attention_dim": 256,
    "caption_projection_dim": 160,
    "pooled_projection_dim": 256,
    "pos_embed_max_size": 8,  # the default squeezes the positions of 8x8 latents together
    "qk_norm": "rms_norm",
}
# The pipeline adds the tokens of a T5, here zeros: 256 unless the call says otherwise.
TEXT_TOKENS = 24
ZERO_TOKENS = {0: 0.7, TEXT_TOKENS: 0.26, 256: 0.04}


class PlainAttention:
    """Joint attention in plain matrix products: trains faster than SDPA on a CPU."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Attention of image and text rows to both; there is no mask."""
        image, text = (
            [linear(states).unflatten(2, (attn.heads, -1)).transpose(1, 2) for linear in linears]
            for states, linears in (
                (hidden_states, (attn.to_q, attn.to_k, attn.to_v)),
                (encoder_hidden_states, (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)),
            )
        )
        query = torch.cat([attn.norm_q(image[0]), attn.norm_added_q(text[0])], 2)
        key = torch.cat([attn.norm_k(image[1]), attn.norm_added_k(text[1])], 2)
        value = torch.cat([image[2], text[2]], 2)
        weights = (query @ key.transpose(2, 3) * query.shape[-1] ** -0.5).softmax(-1)
        mixed = (weights.to(value.dtype) @ value).transpose(1, 2).flatten(2)
        rows, words = mixed.split([hidden_states.shape[1], encoder_hidden_states.shape[1]], 1)
        return attn.to_out[0](rows), words if attn.context_pre_only else attn.to_add_out(words)


def build() -> Any:
    """The untrained transformer, initialised as DiT: every block starts as the identity."""
    from diffusers import SD3Transformer2DModel

    torch.manual_seed(5)
    model = SD3Transformer2DModel(**TRANSFORMER)
    for name, weight in model.named_parameters():
        if name.endswith(".bias") or "norm1" in name or name.startswith(("norm_out", "proj_out")):
            nn.init.zeros_(weight)
        elif "timestep_embedder" in name:
            nn.init.normal_(weight, std=0.02)
        elif weight.ndim > 1:
            nn.init.xavier_uniform_(weight.flatten(1))
    return model


@torch.no_grad()
def standardise_text(model: Any, states: TextStates) -> None:
    """Let both text projections start from channels of mean 0 and deviation 1.

    The states of the tower's inner layer are not normalised: one channel has seven times the
    deviation of the others.
    """
    inner = model.time_text_embed.text_embedder.linear_1
    rows = states.tokens[:, 1:].flatten(0, 1)  # the start token is always the same
    for linear, values in ((model.context_embedder, rows), (inner, states.pooled)):
        linear.weight /= values.std(0)
        linear.bias.copy_(-linear.weight @ values.mean(0))


def draw_times(count: int, generator: torch.Generator, mean: float = 0.3) -> Tensor:
    """Share of noise 0..1: 10 % uniform, 90 % sigmoid(N(mean, 1))."""
    uniform = torch.rand(count, generator=generator)
    middle = torch.sigmoid(mean + torch.randn(count, generator=generator))
    return torch.where(torch.rand(count, generator=generator) < 0.1, uniform, middle)


def draw_captions(chosen: list[scenes.Scene], rng: np.random.Generator) -> list[str]:
    """Half of the captions are full, a tenth empty, the others partial."""
    return [scenes.random_caption(scene, rng, full=0.5, empty=0.1) for scene in chosen]


def train(work: Path, minutes: float, compiled: bool = True) -> None:
    """Train for this many minutes; an unfinished run is resumed."""
    latents, all_scenes, encode = (
        load_latents(work),
        pool.load_scenes(work / "pool"),
        CaptionEncoder(),
    )
    model = build()
    standardise_text(model, encode(draw_captions(all_scenes[:2048], np.random.default_rng(6))))
    model.set_attn_processor(PlainAttention())
    if compiled:
        for block in model.transformer_blocks:
            block.compile(dynamic=False)
    run = TimedRun(work, "sd3-base", model, minutes=minutes, rate=2.5e-3, flat=0.5, every=120)
    rng = np.random.default_rng([9, run.steps])
    generator = torch.Generator().manual_seed(run.steps)
    while not run.done:
        zeros = int(rng.choice(list(ZERO_TOKENS), p=list(ZERO_TOKENS.values())))
        many = zeros > TEXT_TOKENS  # take long, and are not worth a compilation: few samples, eager
        batch = BATCH // 4 if many else BATCH
        chosen = rng.integers(len(latents), size=batch)
        clean = latents[chosen].float()
        tokens, pooled = encode(draw_captions([all_scenes[i] for i in chosen], rng))
        tokens = F.pad(tokens, (0, 0, 0, zeros))
        times = draw_times(batch, generator)
        noise = torch.randn(clean.shape, generator=generator)
        share = times[:, None, None, None]
        noisy = (1 - share) * clean + share * noise
        with (
            torch.compiler.set_stance("force_eager" if many else "default"),
            torch.autocast("cpu", torch.bfloat16),
        ):
            prediction = model(noisy, tokens, pooled, 1000 * times, return_dict=False)[0]
            loss = F.mse_loss(prediction.float(), noise - clean)
        run.step(loss, batch, {})


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("minutes", type=float)
    parser.add_argument("--eager", dest="compiled", action="store_false", help="no torch.compile")
    train(**vars(parser.parse_args()))
