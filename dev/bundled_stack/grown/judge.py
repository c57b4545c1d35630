"""Train the judge of the grown world on drawn scenes, softened like decoded pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bundled_stack.checkpoints import load_state
from bundled_stack.grown import pool
from bundled_stack.grown.labels import ABSENT, cell_word_loss, labels, objects, word_loss
from bundled_stack.stages import training_options
from bundled_stack.timed_run import TimedRun
from imageprompt.demo.judge_128 import HEADS, Judge


@torch.no_grad()
def correct(model: nn.Module, pictures: Tensor, targets: Tensor) -> Tensor:
    """Which words it reads right, float [n, heads]; nan where there is none to read."""
    rows = []
    for part, target in zip(pictures.split(256), targets.split(256), strict=True):
        logits = model(part)
        read = torch.stack([logits[name].argmax(1) for name in HEADS], 1)
        rows.append((read == target).float().masked_fill(target == ABSENT, float("nan")))
    return torch.cat(rows)


def shares(hits: Tensor) -> dict[str, float]:
    """Head -> share of right words; and the share of pictures with one and with two all right."""
    result = dict(zip(HEADS, hits.nanmean(0).tolist(), strict=True))
    alone = hits[:, list(HEADS).index("place")].isnan().logical_not()
    whole = hits.nan_to_num(1.0).prod(1)
    return (
        result
        | {"all, one object": float(whole[alone].mean())}
        | {"all, two objects": float(whole[~alone].mean())}
    )


def soften(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Tint, noise, and in half of the batches blur, as decoded pictures have them."""
    if rng.random() < 0.5:
        sigma = rng.uniform(0.3, 1.2)
        taps = torch.exp(-(torch.arange(-2, 3, device=x.device) ** 2) / (2 * sigma**2))
        kernel = torch.outer(taps, taps) / taps.sum() ** 2
        x = F.conv2d(F.pad(x, (2, 2, 2, 2), "replicate"), kernel.expand(3, 1, 5, 5), groups=3)
    tint = 1 + 0.03 * torch.randn(len(x), 3, 1, 1, device=x.device)
    return (x * tint + rng.uniform(0, 0.08) * torch.randn_like(x)).clamp(-1, 1)


def load(work: Path, device: str = "cpu") -> Judge:
    """The trained judge."""
    model, state = Judge(), load_state(work / "judge.ckpt")
    model.load_state_dict(state["model"] | state["ema"]["average"])
    return model.to(device).eval().requires_grad_(False)


def train(work: Path, minutes: float, *, count: int, batch: int, device: str, rate: float) -> None:
    """Train for this many minutes; an unfinished run is resumed."""
    torch.manual_seed(4)
    model = Judge().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    run = TimedRun(work, "judge", model, minutes=minutes, rate=rate, decay=0.02, flat=0.2)
    chosen_scenes = pool.make(work, "judge", count)
    words, owners = labels(chosen_scenes).to(device), objects(chosen_scenes).to(device)
    pictures = pool.load(work, "judge", count).to(device)
    rng = np.random.default_rng([4, run.steps])
    while not run.done:
        chosen = torch.from_numpy(rng.integers(count, size=batch)).to(device)
        x = soften(pool.to_float(pictures[chosen]), rng)
        with torch.autocast(device, torch.bfloat16):
            features = model.body(x.contiguous(memory_format=torch.channels_last))
            logits, cells = model.words(features), model.cells(features)
        whole = word_loss(logits, words[chosen])
        dense = cell_word_loss(cells.flatten(2).transpose(1, 2), words[chosen], owners[chosen])
        run.step(whole + dense, batch, {"words": whole, "cells": dense})
    model.load_state_dict(run.ema_state())
    for split in ("train", "test"):
        fresh = pool.make(work, split, min(2000, count))
        seen = pool.to_float(pool.load(work, split, len(fresh))).to(device)
        found = shares(correct(model.eval(), seen, labels(fresh).to(device)))
        run.log(**{f"{split}: {name}": share for name, share in found.items()})


if __name__ == "__main__":
    train(**vars(training_options(batch=64, rate=2e-3).parse_args()))
