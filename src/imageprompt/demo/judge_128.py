"""The judge of the larger scenes: which objects a picture shows, how they are and where.

A small classifier, trained apart from the generator and its encoders. Of two objects it names the
first in reading order (left before right, above before below).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from imageprompt.core.bundled import SD3_128, folder
from imageprompt.demo import scenes_128 as scenes
from imageprompt.demo.judge import to_tensor

ALONE = "alone"
ROWS = ("left of", "above")  # relations of the first object in reading order
HEADS: dict[str, tuple[str, ...]] = {
    **{f"first {name}": words for name, words in scenes.OBJECT_WORDS.items()},
    **{f"second {name}": words for name, words in scenes.OBJECT_WORDS.items()},
    "relation": (ALONE, *ROWS),
    "place": scenes.PLACES,
    **scenes.GROUND_WORDS,
}
CELLS = 16
CELL_HEADS = {
    **{name: len(words) for name, words in scenes.OBJECT_WORDS.items()},
    "object": 3,
    **{name: len(words) for name, words in scenes.GROUND_WORDS.items()},
}
"""Outputs per cell: the words of its object, which object it is (0: none), those of the ground."""


class Block(nn.Module):
    """Pre-norm attention and MLP in plain products: trains faster than SDPA on a CPU."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Rows [n, l, width] that have read each other."""
        rows = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1))
        query, key, value = rows.permute(2, 0, 3, 1, 4)
        weights = (query @ key.transpose(2, 3) * query.shape[-1] ** -0.5).softmax(-1)
        x = x + self.out((weights.to(value.dtype) @ value).transpose(1, 2).flatten(2))
        found: Tensor = x + self.mlp(self.norm2(x))
        return found


class Judge(nn.Module):
    """Convolutions to 16x16, then 8x8 cells; three tokens (two objects, the rest) read those."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.PixelUnshuffle(2)]
        inputs = 12
        for outputs, stride in ((32, 1), (64, 2), (96, 2), (96, 1)):
            layers += [
                nn.Conv2d(inputs, outputs, 3, stride, 1),
                nn.GroupNorm(4, outputs),
                nn.SiLU(),
            ]
            inputs = outputs
        self.body = nn.Sequential(*layers)
        self.cells = nn.Conv2d(inputs, sum(CELL_HEADS.values()), 1)  # for training alone
        self.last = nn.Conv2d(inputs, width, 3, 2, 1)
        self.positions = nn.Parameter(0.3 * torch.randn(CELLS**2 // 4, width))
        self.queries = nn.Parameter(torch.randn(3, width))
        self.attention = nn.Sequential(*(Block(width) for _ in range(3)))
        self.heads = nn.ModuleDict(
            {name: nn.Linear(width, len(words)) for name, words in HEADS.items()}
        )

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Logits by head for pictures [n, 3, 128, 128] in -1..1."""
        return self.words(self.body(pictures))

    def words(self, features: Tensor) -> dict[str, Tensor]:
        """Logits by head for the features of the convolutions, [n, 96, 16, 16]."""
        rows = F.silu(self.last(features)).flatten(2).transpose(1, 2) + self.positions
        rows = self.attention(torch.cat([self.queries.expand(len(rows), -1, -1), rows], 1))
        token = {"first": 0, "second": 1}
        return {
            name: head(rows[:, token.get(name.split()[0], 2)]) for name, head in self.heads.items()
        }


@cache
def load_judge() -> Judge:
    """The bundled judge (stored in float16, run in float32)."""
    from safetensors.torch import load_file

    model = Judge()
    state = load_file(folder(SD3_128) / "judge.safetensors")
    model.load_state_dict({name: value.float() for name, value in state.items()})
    return model.eval().requires_grad_(False)


def classify(pictures: Sequence[Image.Image], judge: Judge | None = None) -> list[dict[str, str]]:
    """What the judge sees in each picture, as `Scene.words` says it.

    "relation" says how the first object stands to the second; of one alone
    there is its "place" instead.
    """
    model = judge or load_judge()
    found: list[dict[str, str]] = []
    for start in range(0, len(pictures), 64):
        with torch.no_grad():
            logits = model(to_tensor(pictures[start : start + 64], scenes.SIZE))
        rows = {name: values.argmax(1).tolist() for name, values in logits.items()}
        for index in range(len(pictures[start : start + 64])):
            words = {name: HEADS[name][row[index]] for name, row in rows.items()}
            if words["relation"] == ALONE:
                words = {name: word for name, word in words.items() if not _absent(name)}
            else:
                words.pop("place")
            found.append(words)
    return found


def _absent(name: str) -> bool:
    """Does a scene with one object lack this word?"""
    return name == "relation" or name.startswith("second ")
