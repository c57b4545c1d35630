"""Train the image encoder of the grown world from the bundled one, a stock CLIP vision tower.

Its embedding learns every word of a scene; `hidden_states[-2]`, which Plus adapters read, what each
patch shows and its part of the outlines, which teaches shapes much faster than words alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bundled_stack.checkpoints import load_state
from bundled_stack.grown import pool
from bundled_stack.grown.judge import correct, shares, soften
from bundled_stack.grown.labels import (
    ABSENT,
    CELL_OUTPUTS,
    FINE,
    cell_loss,
    labels,
    objects,
    offsets,
    outlines,
    word_loss,
)
from bundled_stack.stages import training_options
from bundled_stack.timed_run import TimedRun
from bundled_stack.vision import CONFIG
from imageprompt.core import bundled
from imageprompt.demo import scenes_128 as scenes
from imageprompt.demo.judge_128 import CELLS, HEADS

COLOURED = ("colour", "background")  # ends of the names of words that name a colour
SIZES = {"image_size": scenes.SIZE, "patch_size": scenes.SIZE // CELLS}


class VisionWithHeads(nn.Module):
    """The tower with its training heads; only the tower is exported."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        torch.manual_seed(2)
        self.tower: Any = CLIPVisionModelWithProjection(CLIPVisionConfig(**CONFIG | SIZES))
        self.tower.set_attn_implementation("eager")
        _start_tower(self.tower)
        width = CONFIG["hidden_size"]
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.words = nn.ModuleDict(
            {name: nn.Linear(CONFIG["projection_dim"], len(words)) for name, words in HEADS.items()}
        )
        self.cells = nn.Linear(width, CELL_OUTPUTS + FINE**2)

    def outputs(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Logits of words by head from the embedding; of cells and outlines, [n, 256, ...]."""
        out = self.tower(x, output_hidden_states=True)
        embeds = F.layer_norm(out.image_embeds, out.image_embeds.shape[-1:])
        words = {name: head(embeds) for name, head in self.words.items()}
        return words, self.cells(self.norm(out.hidden_states[-2])[:, 1:])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Logits of words by head."""
        return self.outputs(x)[0]


@torch.no_grad()
def _start_tower(tower: Any) -> None:
    """The bundled tower, which knows shapes in patches as large; its positions spread further."""
    from safetensors.torch import load_file

    file = bundled.folder() / "image_encoder" / "model.safetensors"
    start = {name: value.float() for name, value in load_file(file).items()}
    name = "vision_model.embeddings.position_embedding.weight"
    first, grid = start[name].split([1, len(start[name]) - 1])
    grid = grid.T.unflatten(1, (CONFIG["image_size"] // CONFIG["patch_size"], -1))[None]
    grid = F.interpolate(grid, size=(CELLS, CELLS), mode="bilinear")
    start[name] = torch.cat([first, grid[0].flatten(1).T])
    tower.load_state_dict(start)


def tint(x: Tensor, words: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Most of the pictures with their colours turned at random, and words without those colours.

    Else the tower reads shapes worse in pairs with colours that it was never trained on.
    """
    count = 3 * len(x) // 4
    turns, _ = np.linalg.qr(rng.standard_normal((count, 3, 3)))
    turned = torch.einsum("nij,njhw->nihw", torch.from_numpy(turns).to(x), x[:count])
    words = words.clone()
    colours = [index for index, name in enumerate(HEADS) if name.endswith(COLOURED)]
    words[:count, colours] = ABSENT
    return torch.cat([turned.clamp(-1, 1), x[count:]]), words


def load(work: Path, device: str = "cpu") -> Any:
    """The trained tower."""
    model, state = VisionWithHeads(), load_state(work / "vision.ckpt")
    model.load_state_dict(state["model"] | state["ema"]["average"])
    return model.tower.to(device).eval().requires_grad_(False)


def train(work: Path, minutes: float, *, count: int, batch: int, device: str, rate: float) -> None:
    """Train for this many minutes; an unfinished run is resumed."""
    model = VisionWithHeads().to(device)
    run = TimedRun(work, "vision", model, minutes=minutes, rate=rate, decay=0.03, flat=0.3)
    all_scenes = pool.make(work, "train", count)
    words, owners, where = (made(all_scenes).to(device) for made in (labels, objects, offsets))
    edges, pictures = outlines(all_scenes).to(device), pool.load(work, "train", count).to(device)
    rng, often = np.random.default_rng([3, run.steps]), pool.chances(all_scenes)
    while not run.done:
        chosen = torch.from_numpy(rng.choice(count, size=batch, p=often)).to(device)
        x, told = tint(soften(pool.to_float(pictures[chosen]), rng), words[chosen], rng)
        with torch.autocast(device, torch.bfloat16):
            logits, patches = model.outputs(x)
        cells, fine = patches.float().split([CELL_OUTPUTS, FINE**2], 2)
        parts = {
            "words": word_loss(logits, told),
            "cells": cell_loss(cells, told, owners[chosen], where[chosen], even=True),
            "edges": F.binary_cross_entropy_with_logits(fine, edges[chosen].float()),
        }
        run.step(parts["words"] + parts["cells"] + 2 * parts["edges"], batch, parts)
    model.load_state_dict(run.ema_state())
    fresh = pool.make(work, "test", min(2000, count))
    seen = pool.to_float(pool.load(work, "test", len(fresh))).to(device)
    run.log(**shares(correct(model.eval(), seen, labels(fresh).to(device))))


if __name__ == "__main__":
    train(**vars(training_options(batch=32, rate=1e-3).parse_args()))
