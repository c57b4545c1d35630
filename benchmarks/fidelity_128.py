"""How well the stack for larger scenes follows text, and how much of a reference it transfers.

    python benchmarks/fidelity_128.py --json fidelity-128.json --markdown fidelity-128.md

The references are held out: half of them have a (shape, colour) pair, and all photographs in them
are ones, that no part of the generator was trained on. The photographs come from the installed
packages scikit-image, scikit-learn and matplotlib. The stack's own judge reads every word of every
picture; of two objects all words of both, and how they stand to each other. Also reported: the
judge's ceilings, the control without a reference, 95 % Wilson intervals, the overlap of the
objects with the reference's, and two references in one picture, each with its half as mask
(`--picture FILE` draws some of these).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from fidelity import Cell, overlap_of, round_trip, show, table, wilson, write_report
from imageprompt.adapter.adapter import Adapter
from imageprompt.core import bundled
from imageprompt.demo import judge_128, photographs, pipeline
from imageprompt.demo import scenes_128 as scenes
from imageprompt.demo.judge import to_tensor
from imageprompt.encoding.encoders import open_encoder
from imageprompt.generation.engine import Engine
from imageprompt.generation.reference import Reference

Words = dict[str, str]
COLUMNS = ("size", "texture", "colour", "shape", "place", "style", "background", "all")
CHANGED = ("texture", "colour", "shape", "size", "place", "style", "background")
JUDGED = ("texture", "colour", "shape")  # of two references in one picture
SHOWN = 6  # columns of the picture
ONE = "a shape"  # says nothing, but that there is one object


def column_of(name: str) -> str:
    """The column of a word: "first colour" and "second colour" are colours, a relation a place."""
    return "place" if name == "relation" else name.split()[-1]


def match(found: Sequence[Words], expected: Sequence[Words]) -> dict[str, Cell]:
    """By column how often the judge reads the expected word; "all" counts pictures."""
    hits: dict[str, list[bool]] = {name: [] for name in COLUMNS}
    for read, words in zip(found, expected, strict=True):
        right = {name: read.get(name) == word for name, word in words.items()}
        for name, hit in right.items():
            hits[column_of(name)].append(hit)
        hits["all"].append(all(right.values()))
    return {name: wilson(sum(row), len(row)) for name, row in hits.items() if row}


def by_objects(found: Sequence[Words], expected: Sequence[Words]) -> dict[str, dict[str, Cell]]:
    """`match` for the scenes with one object, and for those with two."""
    kinds = {"one object": False, "two objects": True}
    rows = {}
    for kind, two in kinds.items():
        chosen = [i for i, words in enumerate(expected) if ("relation" in words) == two]
        rows[kind] = match([found[i] for i in chosen], [expected[i] for i in chosen])
    return rows


def objects_mask(picture: Image.Image, scene: scenes.Scene) -> NDArray[np.bool_]:
    """Which pixels look like an object rather than the ground, by distance to their two colours."""
    pixels = np.asarray(picture, np.float32)
    kinds = [(thing.colour, thing.texture != "solid") for thing in scene.things] + [
        (scene.background, scene.style != "plain")
    ]
    distances = []
    for colour, mixed in kinds:
        base = np.asarray(scenes.PALETTE[colour], np.float32)
        way = scenes.second_colour(colour) - base
        share = np.clip((pixels - base) @ way / (way @ way), 0, 1) if mixed else np.zeros(1)
        distances.append(np.square(pixels - base - share[..., None] * way).sum(-1))
    nearer: NDArray[np.bool_] = np.min(distances[:-1], axis=0) < distances[-1]
    return nearer


def overlap(pictures: Sequence[Image.Image], expected: Sequence[scenes.Scene]) -> Cell:
    """Intersection over union of all objects with where the scenes have theirs."""
    return overlap_of(
        (objects_mask(picture, scene), np.any([scenes.mask(one) for one in scene.things], axis=0))
        for picture, scene in zip(pictures, expected, strict=True)
    )


class Bench:
    """One set of references, and the measurements on them."""

    def __init__(self, options: argparse.Namespace, on_progress: Callable[[int], None]) -> None:
        self.options, self.on_progress = options, on_progress
        self.pipe = pipeline.load_pipeline(stack=bundled.SD3_128)
        self.encoder = open_encoder(bundled.folder(bundled.SD3_128) / "image_encoder")
        self.photos = photographs.load(held_out=True)
        self.scenes = self._drawn(options.seed, options.count)
        self.references = [scenes.draw(scene, self.photos) for scene in self.scenes]
        self.words = [scene.words() for scene in self.scenes]
        self.seeds = [1_000_000 * (options.seed + 1) + i for i in range(options.count)]

    def _drawn(self, seed: int, count: int) -> list[scenes.Scene]:
        return list(islice(scenes.stream(self.options.split, seed=seed), count))

    def generate(self, prompts: Sequence[str], **options: Any) -> list[Image.Image]:
        """One picture per prompt."""
        return pipeline.sample(
            self.pipe,
            prompts,
            self.seeds[: len(prompts)],
            steps=self.options.steps,
            guidance=self.options.guidance,
            eta=self.options.eta,
            on_pictures=self.on_progress,
            **options,
        )

    def ceilings(self) -> dict[str, Any]:
        """What the judge reads in 2,000 renders, and in the references after the autoencoder."""
        fresh = self._drawn(self.options.seed + 500, 2000)
        renders = judge_128.classify([scenes.draw(scene, self.photos) for scene in fresh])
        decoded, psnr = round_trip(self.pipe.vae, to_tensor(self.references, scenes.SIZE))
        return {
            "judge on renders": by_objects(renders, [scene.words() for scene in fresh]),
            "after the autoencoder": by_objects(judge_128.classify(decoded), self.words),
            "autoencoder_psnr_db": psnr,
            "overlap": {
                "references themselves": overlap(self.references, self.scenes),
                "after the autoencoder": overlap(decoded, self.scenes),
            },
        }

    def text_only(self) -> dict[str, Any]:
        """Full captions without a reference, and a text that says nothing: chance."""
        full = self.generate([scenes.caption(scene) for scene in self.scenes])
        nothing = self.generate(self._generic())
        found = judge_128.classify(full)
        untrained = [i for i in range(len(found)) if i % 4 < 2]
        return {
            "full captions": by_objects(found, self.words),
            "full captions, pairs never trained": by_objects(
                [found[i] for i in untrained], [self.words[i] for i in untrained]
            ),
            "control": by_objects(judge_128.classify(nothing), self.words),
        }

    def transfer(self, adapter: Any) -> dict[str, Any]:
        """A reference beside text that says nothing; two objects also beside text of one."""
        pictures = self._transferred(self._generic(), range(len(self.scenes)), adapter)
        words = by_objects(judge_128.classify(pictures), self.words)
        two = [i for i, scene in enumerate(self.scenes) if scene.relation]
        told = self._transferred([ONE] * len(two), two, adapter)
        words[f'two objects, told "{ONE}"'] = match(
            judge_128.classify(told), [self.words[i] for i in two]
        )
        return {"words": words, "overlap": overlap(pictures, self.scenes)}

    def _transferred(
        self, prompts: Sequence[str], chosen: Sequence[int], adapter: Any
    ) -> list[Image.Image]:
        references = [self.references[i] for i in chosen]
        return self.generate(
            prompts, adapter=adapter, references=references, scale=self.options.scale
        )

    def overrides(self, adapter: Any, scale: float) -> dict[str, Any]:
        """The text changes one word: how often it wins, and how often the others are kept."""
        rng = np.random.default_rng(self.options.seed)
        obeyed: dict[str, Cell] = {}
        kept: dict[str, list[bool]] = {name: [] for name in COLUMNS[:-1]}
        for key in CHANGED:
            able = [i for i, s in enumerate(self.scenes) if s.place or key not in ("size", "place")]
            able = able[: self.options.overrides]
            changed = [scenes.change(self.scenes[i], key, rng) for i in able]
            pictures = self.generate(
                [scenes.caption(scene, {key}) for scene in changed],
                adapter=adapter,
                references=[self.references[i] for i in able],
                scale=scale,
            )
            hits = []
            for i, read, scene in zip(able, judge_128.classify(pictures), changed, strict=True):
                for name, word in scene.words().items():
                    hit = read.get(name) == word
                    if self.words[i][name] != word:
                        hits.append(hit)
                    else:
                        kept[column_of(name)].append(hit)
            obeyed[key] = wilson(sum(hits), len(hits))
        return {
            "obeyed": obeyed,
            "kept": {name: wilson(sum(row), len(row)) for name, row in kept.items()},
        }

    def regions(self, adapter: Any) -> dict[str, Any]:
        """Two references, one with an object on the left, one on the right, on like grounds."""
        pairs = list(islice(self._pairs(), self.options.regions))
        drawn = [[scenes.draw(scene, self.photos) for scene in pair] for pair in pairs]
        left = np.zeros((scenes.SIZE, scenes.SIZE), np.float32)
        left[:, : scenes.SIZE // 2] = 1
        expected = [_both(*pair) for pair in pairs]
        made = {"each in its half": [left, 1 - left], "each everywhere": [None, None]}
        found: dict[str, Any] = {}
        for name, masks in made.items():
            pictures = self._two_references(adapter, drawn, masks)
            found[name] = match(judge_128.classify(pictures), expected)
            drawn = [[*row, picture] for row, picture in zip(drawn, pictures, strict=True)]
        if self.options.picture:
            _sheet(drawn[:SHOWN]).save(self.options.picture, optimize=True)
        return found

    def _pairs(self) -> Iterator[tuple[scenes.Scene, scenes.Scene]]:
        """Scenes with an object on the left, and on the right, both on the ground of the first."""
        stream = scenes.stream(self.options.split, seed=self.options.seed + 700)
        waiting: list[scenes.Scene] = []
        for scene in stream:
            if scene.place == "left" and scene.things[0].size != "large":
                waiting.append(scene)
            if scene.place != "right" or scene.things[0].size == "large" or not waiting:
                continue
            first, thing = waiting[0], scene.things[0]
            if thing.colour != first.background and thing.shape != first.things[0].shape:
                yield (
                    waiting.pop(0),
                    replace(scene, background=first.background, style=first.style, seed=first.seed),
                )

    def _two_references(
        self, adapter: Any, drawn: Sequence[Sequence[Image.Image]], masks: Sequence[Any]
    ) -> list[Image.Image]:
        """One picture for each pair; unmasked, two at full scale would be twice the strength."""
        shared = {
            "steps": self.options.steps,
            "guidance_scale": self.options.guidance,
            "eta": self.options.eta,
        }
        requests: list[dict[str, Any]] = []
        for row, seed in zip(drawn, self.seeds, strict=False):
            first, second = (
                {"reference": picture, "adapter": adapter}
                | ({"scale": 0.5} if mask is None else {"mask": mask, "scale": 1.0})
                for picture, mask in zip(row[:2], masks, strict=True)
            )
            requests.append(
                {"prompt": "", "seed": seed, **shared, **first, "also": [Reference(**second)]}
            )
        results = Engine(self.pipe).generate_many(
            requests,
            batch_size=pipeline.BATCH,
            on_image=lambda done: self.on_progress(len(done)),
            progress=False,
        )
        return [result.images[0] for result in results]

    def _generic(self) -> list[str]:
        """Texts that say nothing; for two objects none, as their captions always name both."""
        return [
            ONE if index % 8 < 4 and not scene.relation else ""
            for index, scene in enumerate(self.scenes)
        ]


def _both(first: scenes.Scene, second: scenes.Scene) -> Words:
    """The words of a picture with the objects of both; sizes are others beside a second object."""
    words = {f"first {name}": word for name, word in vars(first.things[0]).items()}
    words |= {f"second {name}": word for name, word in vars(second.things[0]).items()}
    names = [f"{which} {name}" for which in ("first", "second") for name in JUDGED]
    shown = {name: words[name] for name in names} | {"relation": "left of"}
    return shown | {"style": first.style, "background": first.background}


def _sheet(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Columns of a picture: both references, then what was made of them."""
    side, gap = scenes.SIZE, 8
    found = Image.new(
        "RGB", ((side + gap) * len(rows) + gap, (side + gap) * len(rows[0]) + gap), "white"
    )
    for x, column in enumerate(rows):
        for y, picture in enumerate(column):
            found.paste(picture, (gap + x * (side + gap), gap + y * (side + gap)))
    return found


def markdown(report: dict[str, Any]) -> str:
    """The whole report."""
    rows = {}
    measured = {
        "judge on renders": report["ceilings"]["judge on renders"],
        "after the autoencoder": report["ceilings"]["after the autoencoder"],
        **report["text only"],
        **{f"{name}, scale 1": found["words"] for name, found in report["transfer"].items()},
    }
    for title, kinds in measured.items():
        rows |= {f"{title}: {kind}": cells for kind, cells in kinds.items()}
    parts = [table(rows, COLUMNS), ""]
    changed: dict[str, dict[str, Cell]] = {}
    for name, found in report["overrides"].items():
        changed[f"{name}: text obeyed"] = found["obeyed"]
        changed[f"{name}: others kept"] = found["kept"]
    parts.append(table(changed, CHANGED))
    overlaps = report["ceilings"]["overlap"] | {
        name: found["overlap"] for name, found in report["transfer"].items()
    }
    parts += ["", "| overlap of the objects with the reference's | mean | nine of ten above |"]
    parts += ["|---|---|---|"]
    parts += [f"| {name} | {show(cell)} | {cell['tenth']:.2f} |" for name, cell in overlaps.items()]
    rows = {
        f"two references with {name}, {kind}": cells
        for name, found in report["regions"].items()
        for kind, cells in found.items()
    }
    parts += ["", table(rows, COLUMNS)]
    psnr = report["ceilings"]["autoencoder_psnr_db"]
    parts.append(f"\nAutoencoder: {psnr:.1f} dB. Settings: {json.dumps(report['settings'])}")
    return "\n".join(parts)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=240, help="number of references")
    parser.add_argument("--overrides", type=int, default=80, help="references per changed word")
    parser.add_argument("--regions", type=int, default=96, help="pairs of references with masks")
    parser.add_argument("--picture", type=Path, help="draw some of these pairs to this file")
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--override-scales", type=float, nargs="*", default=[0.5, 0.4])
    parser.add_argument("--steps", type=int, default=pipeline.STEPS)
    parser.add_argument("--guidance", type=float, default=bundled.GUIDANCE_128)
    parser.add_argument("--eta", type=float, default=bundled.ETA_128)
    parser.add_argument("--adapters", nargs="*", default=["plus"])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    return parser.parse_args()


def main() -> None:
    """Measure, print, write."""
    options = arguments()
    started = time.monotonic()
    changed = len(CHANGED) * len(options.override_scales) * options.overrides
    per_adapter = options.count + options.count // 2 + changed + 2 * options.regions
    bar = tqdm(total=2 * options.count + len(options.adapters) * per_adapter, unit="picture")
    bench = Bench(options, bar.update)
    report: dict[str, Any] = {
        "settings": {
            key: value
            for key, value in vars(options).items()
            if key not in ("json", "markdown", "picture")
        },
        "ceilings": bench.ceilings(),
        "text only": bench.text_only(),
        "transfer": {},
        "overrides": {},
        "regions": {},
    }
    for name in options.adapters:
        file = bundled.adapter(name, bundled.SD3_128)
        adapter = Adapter.load(file, dtype=torch.float32)
        adapter.attach(bench.pipe, encoder=bench.encoder)
        report["transfer"][name] = bench.transfer(adapter)
        for scale in options.override_scales if options.overrides else []:
            report["overrides"][f"{name}, scale {scale}"] = bench.overrides(adapter, scale)
        if options.regions:
            report["regions"][name] = bench.regions(adapter)
        adapter.detach()
    bar.close()
    report["settings"]["seconds"] = round(time.monotonic() - started)
    write_report(report, markdown(report), options)


if __name__ == "__main__":
    main()
