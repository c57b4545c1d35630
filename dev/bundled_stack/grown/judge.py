"""The judge of the grown world: which objects a picture shows, how they are and where."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bundled_stack.checkpoints import load_state
from bundled_stack.grown import pool, scenes
from bundled_stack.timed_run import TimedRun

ROWS = ("left of", "above")  # relations of the first object in reading order
HEADS: dict[str, tuple[str, ...]] = {
    **{f"first {name}": words for name, words in scenes.OBJECT_WORDS.items()},
    **{f"second {name}": words for name, words in scenes.OBJECT_WORDS.items()},
    "relation": ("alone", *ROWS),
    "place": scenes.PLACES,
    **scenes.GROUND_WORDS,
}
ABSENT = -100  # the label of what a scene does not have


class Judge(nn.Module):
    """Convolutions to 16x16 cells; three tokens (two objects, the rest) attend to them."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for outputs in (width // 3, 2 * width // 3, width):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(4, outputs)]
            layers += [nn.SiLU(), nn.Conv2d(outputs, outputs, 3, stride=2, padding=1)]
            layers += [nn.GroupNorm(4, outputs), nn.SiLU()]
            inputs = outputs
        self.body = nn.Sequential(*layers)
        self.positions = nn.Parameter(0.3 * torch.randn(256, width))
        self.queries = nn.Parameter(torch.randn(3, width))
        self.attention = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(
                    width, 4, 2 * width, 0.0, F.gelu, batch_first=True, norm_first=True
                )
                for _ in range(3)
            )
        )
        self.heads = nn.ModuleDict(
            {name: nn.Linear(width, len(words)) for name, words in HEADS.items()}
        )

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Logits by head for pictures [n, 3, 128, 128] in -1..1."""
        cells = self.body(pictures).flatten(2).transpose(1, 2) + self.positions
        rows = self.attention(torch.cat([self.queries.expand(len(cells), -1, -1), cells], 1))
        token = {"first": 0, "second": 1}
        return {
            name: head(rows[:, token.get(name.split()[0], 2)]) for name, head in self.heads.items()
        }


def labels(chosen: list[scenes.Scene]) -> Tensor:
    """Index of the word of every head, [n, heads]; ABSENT where a scene has none."""
    rows = []
    for scene in chosen:
        words = {"relation": "alone"} | scene.words()
        rows.append([HEADS[name].index(words[name]) if name in words else ABSENT for name in HEADS])
    return torch.tensor(rows)


@torch.no_grad()
def correct(model: Judge, pictures: Tensor, targets: Tensor) -> Tensor:
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
    model = Judge().to(device)
    run = TimedRun(work, "judge", model, minutes=minutes, rate=rate, decay=0.02, flat=0.2)
    targets = labels(pool.make(work, "judge", count)).to(device)
    pictures = pool.load(work, "judge", count).to(device)
    rng = np.random.default_rng([4, run.steps])
    while not run.done:
        chosen = torch.from_numpy(rng.integers(count, size=batch)).to(device)
        x = soften(pool.to_float(pictures[chosen]), rng)
        with torch.autocast(device, torch.bfloat16):
            logits = model(x)
        losses = [
            F.cross_entropy(logits[name].float(), targets[chosen, index], ignore_index=ABSENT)
            for index, name in enumerate(HEADS)
        ]
        run.step(torch.stack(losses).nansum(), batch, {})
    model.load_state_dict(run.ema_state())
    for split in ("train", "test"):
        fresh = pool.make(work, split, min(2000, count))
        seen = pool.to_float(pool.load(work, split, len(fresh))).to(device)
        found = shares(correct(model.eval(), seen, labels(fresh).to(device)))
        run.log(**{f"{split}: {name}": share for name, share in found.items()})


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("minutes", type=float)
    parser.add_argument("--count", type=int, default=65_536, help="pictures to train on")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--device", default="cpu")
    train(**vars(parser.parse_args()))
