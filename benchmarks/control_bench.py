"""The bundled stack, two sets of references, and picture generation for control.py."""

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
from imageprompt.evaluation.probing.measures import layout, picture_statistics

BATCH = 16
SIDE = 64

Layer = tuple[Sequence[Sequence[Image.Image]], Mapping[str, Any]]
"""References of every picture; their `fusion`, and the controls they are used with."""


class Bench:
    """Two sets of references, and a pipeline with the adapter attached."""

    def __init__(self, options: argparse.Namespace, on_progress: Callable[[int], object]) -> None:
        self.options, self.on_progress = options, on_progress
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

    def generate(
        self, texts: Sequence[str], *layers: Layer, size: tuple[int, int] = (SIDE, SIDE)
    ) -> list[Image.Image]:
        """One picture per text, each with its own seed."""
        pictures: list[Image.Image] = []
        for start in range(0, len(texts), BATCH):
            chosen = slice(start, start + BATCH)
            count = len(texts[chosen])
            with ExitStack() as used:
                for references, controls in layers:
                    options = dict(controls)
                    fusion = options.pop("fusion", "concat")
                    prompt = self.adapter.encode(list(references[chosen]), fusion=fusion)
                    used.enter_context(self.adapter.use(prompt, **{"scale": 1.0, **options}))
                pictures += self.pipe(
                    list(texts[chosen]),
                    generator=[
                        torch.Generator().manual_seed(7_000_000 + start + i) for i in range(count)
                    ],
                    num_inference_steps=self.options.steps,
                    guidance_scale=pipeline.GUIDANCE,
                    width=size[0],
                    height=size[1],
                ).images
            self.on_progress(count)
        return pictures

    def contradicting(self, names: Sequence[str]) -> tuple[list[scenes.Scene], list[str]]:
        """Scenes that differ from the references in these words, and texts that name them."""
        changed = [scenes.change(scene, names, self.rng) for scene in self.scenes]
        return changed, [scenes.caption(scene, set(names)) for scene in changed]

    def embed(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """The encoder's unit embeddings [n, F]."""
        embeds = self.adapter.encoder.encode(pictures, "image_embeds")
        return torch.nn.functional.normalize(embeds, dim=1)

    def layout_similarity(self, pictures: Sequence[Image.Image]) -> Cell:
        """Mean correlation of the layouts with those of the references."""
        pairs = zip(pictures, self.references, strict=True)
        return mean([1 - layout(picture_statistics(a), picture_statistics(b[0])) for a, b in pairs])


def mean(values: Sequence[float]) -> Cell:
    """Mean with its 95 % interval (normal approximation)."""
    array = np.asarray(values, np.float64)
    half = 1.96 * float(array.std(ddof=1)) / len(array) ** 0.5 if len(array) > 1 else 1.0
    middle = float(array.mean())
    return {"share": middle, "low": middle - half, "high": middle + half, "count": len(array)}


def agreement(read: Sequence[Words], expected: Sequence[scenes.Scene]) -> dict[str, Cell]:
    """How often the judge reads each word of the expected scenes."""
    return match(read, [scene.words() for scene in expected])
