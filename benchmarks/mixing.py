"""What mixing references does on the bundled stack: fusions, weights, a negative picture, noise.

    python benchmarks/mixing.py [--pairs 48] [--steps 20] [--json FILE]

Pairs of references A, B with the prompt "a shape"; the independent judge reads every picture. A row
says how many pictures show A's and how many show B's attribute.
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

SEEN = ("shape", "colour", "texture", "background")
BATCH = 12

Pair = tuple[Scene, Scene]

# What is done -> arguments of encode; by default both pictures of a pair are one prompt's.
TOGETHER: Mapping[str, dict[str, Any]] = {
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
    random = np.random.default_rng(3)
    found: list[Pair] = []
    while len(found) < count:
        pair = (scenes.sample(random), scenes.sample(random))
        if fits(*pair):
            found.append(pair)
    return found


def shared(a: Scene, b: Scene) -> list[str]:
    return [name for name in SEEN if getattr(a, name) == getattr(b, name)]


class Bench:
    def __init__(self, steps: int) -> None:
        self.pipe = pipeline.load_pipeline()
        self.steps = steps
        self.rows: list[dict[str, Any]] = []

    def row(
        self, variant: str, what: str, chosen: Sequence[Pair], scale: float, **wishes: Any
    ) -> None:
        """Paint every pair's prompt, and count. `references` and `negative` name A, B or both;
        with `parted`, of A only the object is shown, of B only the background."""
        shown, negative = wishes.pop("references", "AB"), wishes.pop("negative", "")
        parted = wishes.pop("parted", False)
        adapter = ip.Adapter.load(bundled.adapter(variant))
        adapter.attach(self.pipe, encoder=self.pipe.image_encoder)
        images = []
        for start in range(0, len(chosen), BATCH):
            part = chosen[start : start + BATCH]
            if negative:
                wishes["negative"] = [_drawn(pair, negative) for pair in part]
            if parted:
                wishes["reference_mask"] = [[_object(a), 1 - _object(b)] for a, b in part]
            prompt = adapter.encode([_drawn(pair, shown) for pair in part], **wishes)
            seeds = range(start, start + len(part))
            with adapter.use(prompt, scale=scale):
                images += self.pipe(
                    prompt=["a shape"] * len(part),
                    generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                    num_inference_steps=self.steps,
                    guidance_scale=bundled.GUIDANCE,
                ).images
        adapter.detach()
        read = judge.read(images)
        row: dict[str, Any] = {"adapter": variant, "what": what, "scale": scale}
        for name in SEEN:
            for letter, i in (("A", 0), ("B", 1)):
                hits = [r[name] == getattr(p[i], name) for r, p in zip(read, chosen, strict=True)]
                row[f"{name} {letter}"] = round(float(np.mean(hits)), 2)
        self.rows.append(row)
        figures = "  ".join(f"{n} {row[f'{n} A']:.2f}/{row[f'{n} B']:.2f}" for n in SEEN)
        print(f"{variant:<5} {what:<36} {scale:.1f}  {figures}", flush=True)


def _drawn(pair: Pair, letters: str) -> list[Any]:
    return [scenes.draw(scene) for scene, name in zip(pair, "AB", strict=True) if name in letters]


def _object(scene: Scene) -> Any:
    """Where the object is: 1, else 0."""
    lone = replace(scene, colour="white", texture="solid", background="black", style="plain")
    light = np.asarray(scenes.draw(lone).convert("L"), np.float32)
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
    apart = pairs(options.pairs, lambda a, b: not shared(a, b))
    print("share of pictures with A's / B's attribute")
    for variant in ("base", "plus"):
        for what, wishes in TOGETHER.items():
            bench.row(variant, what, apart, 1.0, **wishes)
        for what in ("side by side", "average", "add"):
            name = f"A's object, B's background, {what}"
            bench.row(variant, name, apart, 1.0, parted=True, **TOGETHER[what])
        for what, wishes in NOISE.items():
            bench.row(variant, what, apart, 1.0, references="A", **wishes)
        for name in ("colour", "background", "shape"):
            alike = pairs(options.pairs, lambda a, b, n=name: shared(a, b) == [n])
            bench.row(variant, f"A; B has A's {name} alone", alike, 0.7, references="A")
            bench.row(
                variant, "  the same, B as negative", alike, 0.7, references="A", negative="B"
            )
    if options.json:
        options.json.write_text(json.dumps({"rows": bench.rows}, indent=1))


if __name__ == "__main__":
    main()
