"""Train the judge on rendered scenes, blurred and noised like pictures from a decoder."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bundled_stack import pool
from bundled_stack.timed_run import TimedRun
from bundled_stack.vae import to_tensor
from bundled_stack.vision import held_out
from imageprompt.demo import scenes
from imageprompt.demo.judge import Judge


def soften(x: Tensor, generator: np.random.Generator) -> Tensor:
    """Shift by up to three pixels, tint and noise slightly, and blur half of the batches."""
    shift = generator.integers(-3, 4, size=2)
    x = F.pad(x, (3, 3, 3, 3), mode="replicate")
    x = x[:, :, 3 + shift[0] : 67 + shift[0], 3 + shift[1] : 67 + shift[1]]
    if generator.random() < 0.5:
        sigma = generator.uniform(0.3, 1.3)
        taps = torch.exp(-(torch.arange(-2, 3, dtype=torch.float32) ** 2) / (2 * sigma**2))
        kernel = torch.outer(taps, taps) / taps.sum() ** 2
        x = F.conv2d(F.pad(x, (2, 2, 2, 2), mode="replicate"), kernel.expand(3, 1, 5, 5), groups=3)
    tint = 1 + 0.03 * torch.randn(len(x), 3, 1, 1)
    noise = float(generator.uniform(0, 0.12))
    return (x * tint + noise * torch.randn_like(x)).clamp(-1, 1)


@torch.no_grad()
def accuracy(model: Judge, x: Tensor, labels: Tensor) -> dict[str, float]:
    """Fraction of correct targets per attribute, and of pictures with all five correct."""
    correct = torch.stack(
        [part.argmax(1) == labels[:, i] for i, part in enumerate(model.eval()(x))], dim=1
    ).float()
    accuracies = dict(zip(scenes.ATTRIBUTES, correct.mean(0).tolist(), strict=True))
    return accuracies | {"all": float(correct.prod(1).mean())}


def train(work: Path, minutes: float) -> None:
    """Train for this many minutes; an unfinished run is resumed."""
    torch.manual_seed(4)
    model = Judge()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    run = TimedRun(
        work, "judge", model, minutes=minutes, rate=2e-3, decay=0.02, ema=0.995, flat=0.2
    )
    pool.make_shard(work / "pool-judge", 0, split="judge")
    pictures, labels = (
        np.concatenate([pool.load(work / folder, part) for folder in ("pool", "pool-judge")])
        for part in ("pictures", "labels")
    )
    common = len(pictures) - pool.SHARD
    rng = np.random.default_rng([4, run.steps])
    while not run.done:
        # a quarter of every batch shows the pairs that no other model is trained on
        chosen = np.concatenate(
            [rng.integers(common, size=36), rng.integers(common, len(pictures), 12)]
        )
        x = soften(to_tensor(pictures[chosen]), rng).contiguous(memory_format=torch.channels_last)
        target = torch.from_numpy(labels[chosen]).long()
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(x)
        parts = [F.cross_entropy(part.float(), target[:, i]) for i, part in enumerate(logits)]
        run.step(torch.stack(parts).sum(), len(x), {})
    model.load_state_dict(run.ema_state())
    run.log(**accuracy(model, *held_out(2000)))


if __name__ == "__main__":
    train(Path(sys.argv[1]), float(sys.argv[2]))
