"""Mixing references on the bundled stack: fusions, weights, a negative picture, noise.

    python benchmarks/mixing.py [--pairs 48] [--steps 20] [--json FILE]

Pairs of references A, B with the prompt "a shape"; the stack's independent judge reads every
picture. A row shows the share of pictures with A's and with B's attribute.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import imageprompt as ip
from imageprompt.core import bundled
from imageprompt.demo import judge, pipeline, scenes
from imageprompt.demo.scenes import Scene

JUDGED = ("shape", "colour", "texture", "background")
BATCH = 12

Pair = tuple[Scene, Scene]

# Name of the row -> arguments of encode. Both pictures of a pair make one image prompt.
FUSIONS: Mapping[str, dict[str, Any]] = {
    "side by side": {},
    "weights 1, 0.75": {"weights": [1.0, 0.75]},
    "weights 1, 0.5": {"weights": [1.0, 0.5]},
    "weights 1, 0": {"weights": [1.0, 0.0]},
    "average": {"fusion": "average"},
    "weighted 0.75, 0.25": {"fusion": "weighted", "weights": [0.75, 0.25]},
    "norm average": {"fusion": "norm average"},
    "add": {"fusion": "add"},
    "max": {"fusion": "max"},
    "min": {"fusion": "min"},
    "subtract (A - B)": {"fusion": "subtract"},
}
NOISE: Mapping[str, dict[str, Any]] = {
    "A alone": {},
    "noise 0.3": {"noise": 0.3},
    "noise 0.6": {"noise": 0.6},
    "dissolve 0.3": {"noise": "dissolve:0.3"},
    "shuffle 0.6": {"noise": "shuffle:0.6"},
}


def pairs(count: int, fits: Callable[[Scene, Scene], bool]) -> list[Pair]:
    """Random pairs of scenes that satisfy `fits`."""
    random = np.random.default_rng(3)
    found: list[Pair] = []
    while len(found) < count:
        pair = (scenes.random_scene(random), scenes.random_scene(random))
        if fits(*pair):
            found.append(pair)
    return found


def shared(a: Scene, b: Scene) -> list[str]:
    """The attributes in which two scenes are equal."""
    return [name for name in JUDGED if getattr(a, name) == getattr(b, name)]


class Bench:
    """The bundled pipeline, and the rows measured so far."""

    def __init__(self, steps: int) -> None:
        self.pipe = pipeline.load_pipeline()
        self.steps = steps
        self.rows: list[dict[str, Any]] = []

    def row(
        self, variant: str, what: str, chosen: Sequence[Pair], scale: float, **encode_arguments: Any
    ) -> None:
        """Generate a picture for every pair, and count the attributes.

        `references` and `negative` are "A", "B" or "AB". With `masked`, only the object of A and
        only the background of B are used.
        """
        references = encode_arguments.pop("references", "AB")
        negative = encode_arguments.pop("negative", "")
        masked = encode_arguments.pop("masked", False)
        adapter = ip.Adapter.load(bundled.adapter(variant))
        adapter.attach(self.pipe, encoder=self.pipe.image_encoder)
        images = []
        for start in range(0, len(chosen), BATCH):
            batch = chosen[start : start + BATCH]
            if negative:
                encode_arguments["negative"] = [_drawn(pair, negative) for pair in batch]
            if masked:
                masks = [[_object_mask(a), 1 - _object_mask(b)] for a, b in batch]
                encode_arguments["reference_mask"] = masks
            pictures = [_drawn(pair, references) for pair in batch]
            prompt = adapter.encode(pictures, **encode_arguments)
            seeds = range(start, start + len(batch))
            with adapter.use(prompt, scale=scale):
                images += self.pipe(
                    prompt=["a shape"] * len(batch),
                    generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                    num_inference_steps=self.steps,
                    guidance_scale=bundled.GUIDANCE,
                ).images
        adapter.detach()
        words = judge.classify(images)
        row: dict[str, Any] = {"adapter": variant, "what": what, "scale": scale}
        for name in JUDGED:
            for letter, i in (("A", 0), ("B", 1)):
                hits = [r[name] == getattr(p[i], name) for r, p in zip(words, chosen, strict=True)]
                row[f"{name} {letter}"] = round(float(np.mean(hits)), 2)
        self.rows.append(row)
        figures = "  ".join(f"{n} {row[f'{n} A']:.2f}/{row[f'{n} B']:.2f}" for n in JUDGED)
        print(f"{variant:<5} {what:<36} {scale:.1f}  {figures}", flush=True)


def _drawn(pair: Pair, letters: str) -> list[Any]:
    return [scenes.draw(scene) for scene, name in zip(pair, "AB", strict=True) if name in letters]


def _object_mask(scene: Scene) -> Any:
    """1 where the object is, else 0."""
    alone = replace(scene, colour="white", texture="solid", background="black", style="plain")
    light = np.asarray(scenes.draw(alone).convert("L"), np.float32)
    return (light - light.min()) / (light.max() - light.min())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=48, metavar="N")
    parser.add_argument("--steps", type=int, default=20, metavar="N")
    parser.add_argument("--threads", type=int, default=1, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    bench = Bench(options.steps)
    different = pairs(options.pairs, lambda a, b: not shared(a, b))
    print("share of pictures with A's / B's attribute")
    for variant in ("base", "plus"):
        for what, arguments in FUSIONS.items():
            bench.row(variant, what, different, 1.0, **arguments)
        for what in ("side by side", "average", "add"):
            name = f"A's object, B's background, {what}"
            bench.row(variant, name, different, 1.0, masked=True, **FUSIONS[what])
        for what, arguments in NOISE.items():
            bench.row(variant, what, different, 1.0, references="A", **arguments)
        for name in ("colour", "background", "shape"):
            similar = pairs(options.pairs, lambda a, b, n=name: shared(a, b) == [n])
            bench.row(variant, f"A; B has A's {name} alone", similar, 0.7, references="A")
            bench.row(
                variant, "  the same, B as negative", similar, 0.7, references="A", negative="B"
            )
    if options.json:
        options.json.write_text(json.dumps({"rows": bench.rows}, indent=1))


if __name__ == "__main__":
    main()
