"""The tiny stack, two sets of references, and the pictures that control.py asks for."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image

from fidelity import Cell, Words, match
from imageprompt.adapter.adapter import Adapter
from imageprompt.demo import pipeline, scenes
from imageprompt.evaluation.probing.measures import layout, statistics

BATCH = 16
SIDE = 64

Layer = tuple[Sequence[Sequence[Image.Image]], Mapping[str, Any]]
"""References of every picture, and how they are encoded (`fusion`) and used (all else)."""


class Bench:
    """Two sets of references, a pipeline with the adapter, and the pictures of each question."""

    def __init__(self, options: argparse.Namespace, told: Callable[[int], object]) -> None:
        self.options, self.told = options, told
        self.pipe = pipeline.load_pipeline()
        path = pipeline.folder() / "adapters" / f"{options.adapter}.safetensors"
        self.adapter = Adapter.load(path, dtype=torch.float32)
        self.adapter.attach(self.pipe, encoder=self.pipe.image_encoder)
        self.scenes, self.others = (
            list(islice(scenes.stream("test", seed=options.seed + extra), options.count))
            for extra in (300, 301)
        )
        self.references = [[scenes.draw(scene)] for scene in self.scenes]
        self.second = [[scenes.draw(scene)] for scene in self.others]
        self.rng = np.random.default_rng(options.seed)

    def paint(
        self, texts: Sequence[str], *layers: Layer, size: tuple[int, int] = (SIDE, SIDE)
    ) -> list[Image.Image]:
        """One picture a text, each with a seed of its own."""
        painted: list[Image.Image] = []
        for start in range(0, len(texts), BATCH):
            chosen = slice(start, start + BATCH)
            count = len(texts[chosen])
            with ExitStack() as used:
                for references, how in layers:
                    options = dict(how)
                    fusion = options.pop("fusion", "concat")
                    prompt = self.adapter.encode(list(references[chosen]), fusion=fusion)
                    used.enter_context(self.adapter.use(prompt, **options))
                painted += self.pipe(
                    list(texts[chosen]),
                    generator=[
                        torch.Generator().manual_seed(7_000_000 + start + i) for i in range(count)
                    ],
                    num_inference_steps=self.options.steps,
                    guidance_scale=pipeline.GUIDANCE,
                    width=size[0],
                    height=size[1],
                ).images
            self.told(count)
        return painted

    def contradicting(self, names: Sequence[str]) -> tuple[list[scenes.Scene], list[str]]:
        """Scenes that differ from the references in these words, and texts that name them."""
        wanted = [scenes.change(scene, names, self.rng) for scene in self.scenes]
        return wanted, [scenes.caption(scene, set(names)) for scene in wanted]

    def embed(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """The encoder's unit embeddings [n, F]."""
        found = self.adapter.encoder.encode(pictures, "image_embeds")
        return torch.nn.functional.normalize(found, dim=1)

    def near(self, pictures: Sequence[Image.Image]) -> Cell:
        """Mean correlation of layouts with the references."""
        pairs = zip(pictures, self.references, strict=True)
        return mean([1 - layout(statistics(a), statistics(b[0])) for a, b in pairs])


def mean(values: Sequence[float]) -> Cell:
    """With the 95 % interval of a mean of many."""
    array = np.asarray(values, np.float64)
    half = 1.96 * float(array.std(ddof=1)) / len(array) ** 0.5 if len(array) > 1 else 1.0
    middle = float(array.mean())
    return {"share": middle, "low": middle - half, "high": middle + half, "count": len(array)}


def agree(found: Sequence[Words], scenes_: Sequence[scenes.Scene]) -> dict[str, Cell]:
    """How often the judge reads each word of these scenes."""
    return match(found, [scene.words() for scene in scenes_])
