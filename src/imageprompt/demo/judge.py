"""The independent judge: a small classifier that names the five attributes of a picture."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from imageprompt.demo.scenes import ATTRIBUTES, SIZE, VOCABULARY, Scene

WEIGHTS = Path(__file__).parent / "stack" / "judge.safetensors"


class Judge(nn.Module):
    """Eight convolutions and a small head, trained apart from the generator and its encoders."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for outputs in (width, 2 * width, 3 * width, 4 * width):
            layers += [
                nn.Conv2d(inputs, outputs, 3, padding=1),
                nn.GroupNorm(4, outputs),
                nn.SiLU(),
            ]
            layers += [nn.Conv2d(outputs, outputs, 3, stride=2, padding=1)]
            layers += [nn.GroupNorm(4, outputs), nn.SiLU()]
            inputs = outputs
        self.body = nn.Sequential(*layers)
        counts = [len(words) for words in VOCABULARY.values()]
        self.counts = counts
        self.head = nn.Sequential(nn.Linear(inputs * 16, 64), nn.SiLU(), nn.Linear(64, sum(counts)))

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """Logits per attribute for pictures [n, 3, 64, 64] in -1..1."""
        features = self.body(pictures).flatten(1)
        return list(self.head(features).split(self.counts, dim=1))


def to_tensor(pictures: Sequence[Image.Image], side: int = SIZE) -> Tensor:
    """Pictures of any size to [n, 3, side, side] in -1..1."""
    arrays = [
        np.asarray(picture.convert("RGB").resize((side, side), Image.Resampling.BOX))
        if picture.size != (side, side)
        else np.asarray(picture.convert("RGB"))
        for picture in pictures
    ]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 127.5 - 1


@cache
def load_judge(path: Path = WEIGHTS) -> Judge:
    """The bundled judge (stored in float16, run in float32)."""
    from safetensors.torch import load_file

    model = Judge()
    model.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    return model.eval().requires_grad_(False)


def classify(pictures: Sequence[Image.Image], judge: Judge | None = None) -> list[dict[str, str]]:
    """The word for each attribute that the judge sees in each picture."""
    model = judge or load_judge()
    labels: list[dict[str, str]] = []
    for start in range(0, len(pictures), 64):
        with torch.no_grad():
            logits = model(to_tensor(pictures[start : start + 64]))
        choices = torch.stack([part.argmax(1) for part in logits], dim=1).tolist()
        labels += [
            {name: VOCABULARY[name][index] for name, index in zip(ATTRIBUTES, row, strict=True)}
            for row in choices
        ]
    return labels


def shares(pictures: Sequence[Image.Image], drawn: Sequence[Scene]) -> dict[str, float]:
    """Attribute -> share of the pictures that have the word of their scene; and of all five."""
    pairs = list(zip(classify(pictures), drawn, strict=True))
    hits = {
        name: [words[name] == getattr(scene, name) for words, scene in pairs] for name in ATTRIBUTES
    }
    hits["all five"] = [all(row) for row in zip(*hits.values(), strict=True)]
    return {name: sum(row) / len(pairs) for name, row in hits.items()}
