"""Content from one picture and style from another, by the pair of adapters of a stack, judged.

    python benchmarks/dual.py --json dual.json

Held-out pairs of references that differ in all five words; half of the content references have
combinations of shape and colour that training never saw. No text. The stack's independent judge
reads the words of every picture; 95 % intervals.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from fidelity import Cell, Words, object_mask, overlap, table, wilson, write_report
from imageprompt.core import bundled
from imageprompt.demo import judge, scenes
from imageprompt.demo.scenes import Scene
from imageprompt.generation.engine import Engine
from imageprompt.generation.reference import Reference

LOOK = ("colour", "texture", "background")
COLUMNS = ("shape", *LOOK, "all four", "style", "texture of the content", "overlap")
BATCH = 16
SCALES = (0.25, 0.5, 0.75)


def held_out_pairs(count: int, seed: int) -> Iterator[tuple[Scene, Scene]]:
    """Content and style scenes that differ in every word."""
    others = scenes.stream("test", seed=seed + 401)
    for content in islice(scenes.stream("test", seed=seed + 400), count):
        words = content.words().items()
        yield content, next(o for o in others if all(getattr(o, k) != v for k, v in words))


class Bench:
    """The pairs of references, and the pictures made with them."""

    def __init__(self, options: argparse.Namespace, bar: Any) -> None:
        self.options, self.bar = options, bar
        self.engine = Engine(options.stack)
        self.pairs = list(held_out_pairs(options.count, options.seed))
        self.contents = [scenes.draw(content) for content, _ in self.pairs]
        self.styles = [scenes.draw(style) for _, style in self.pairs]
        look = (*LOOK, "style")
        self.targets = [replace(c, **{k: getattr(s, k) for k in look}) for c, s in self.pairs]

    def generate(self, requests: Sequence[Mapping[str, Any]]) -> list[Image.Image]:
        """A picture for each request, from its own seed."""
        shared = {"steps": self.options.steps, "guidance_scale": bundled.GUIDANCE}
        asked = [
            {"seed": 9_000_000 + 1000 * self.options.seed + i, **shared, **one}
            for i, one in enumerate(requests)
        ]
        made: list[Image.Image] = []
        for start in range(0, len(asked), BATCH):
            results = self.engine.generate_many(
                asked[start : start + BATCH], batch_size=BATCH, progress=False
            )
            made += [result.images[0] for result in results]
            self.bar.update(len(results))
        return made

    def mixed(self, content: float, style: float, count: int | None = None) -> list[Image.Image]:
        """Both references at these scales; at 0 without that one."""
        requests = []
        for c, s in zip(self.contents[:count], self.styles[:count], strict=True):
            one = {"adapter": self.options.adapter}
            shape = {**one, "content": c, "scale": content}
            look = {**one, "style": s, "scale": style}
            both = {**shape, "also": [Reference(**look)]}
            requests.append(both if content and style else shape if content else look)
        return self.generate(requests)

    def presets(self) -> list[Image.Image]:
        """The same references by the Plus adapter: layout of one, style of the other."""
        requests = []
        for c, s in zip(self.contents, self.styles, strict=True):
            look = Reference(reference=s, adapter="plus", preset="style", scale=1.0)
            shape = {"reference": c, "adapter": "plus", "preset": "layout", "scale": 1.0}
            requests.append({**shape, "also": [look]})
        return self.generate(requests)

    def judged(self, pictures: Sequence[Image.Image]) -> dict[str, Cell]:
        """What the judge reads, against the shape of one reference and the look of the other."""
        read = judge.classify(pictures)
        count = len(pictures)
        rows = list(zip(read, self.pairs[:count], strict=True))
        hits = {"shape": [words["shape"] == c.shape for words, (c, _) in rows]}
        for name in (*LOOK, "style"):
            hits[name] = [words[name] == getattr(s, name) for words, (_, s) in rows]
        four = zip(*(hits[name] for name in ("shape", *LOOK)), strict=True)
        hits["all four"] = [all(row) for row in four]
        hits["texture of the content"] = [words["texture"] == c.texture for words, (c, _) in rows]
        found = {name: wilson(sum(row), count) for name, row in hits.items()}
        found["overlap"] = overlap(pictures, self.targets[:count])
        return found

    def distance(self, pictures: Sequence[Image.Image]) -> float:
        """Mean distance in pixels between the centre of the object and that of its reference."""
        found = []
        for picture, target in zip(pictures, self.targets[: len(pictures)], strict=True):
            drawn = np.argwhere(scenes.mask(target)).mean(0)
            seen = np.argwhere(object_mask(picture, target))
            if len(seen):
                found.append(float(np.linalg.norm(seen.mean(0) - drawn)))
        return float(np.mean(found))

    def variety(self, part: str, seeds: int) -> dict[str, int]:
        """Different words in pictures from one reference alone, over so many seeds."""
        picture = (self.contents if part == "content" else self.styles)[0]
        one = {part: picture, "scale": 1.0, "adapter": self.options.adapter}
        return different(judge.classify(self.generate([one] * seeds)))


def different(read: Sequence[Words]) -> dict[str, int]:
    """How many different words of each kind."""
    return {name: len({words[name] for words in read}) for name in scenes.ATTRIBUTES}


def measure(bench: Bench) -> dict[str, Any]:
    """Every figure of the report."""
    options = bench.options
    judged: dict[str, dict[str, Cell]] = {"drawn (ceiling)": {}}
    drawn = bench.judged([scenes.draw(target) for target in bench.targets])
    judged["drawn (ceiling)"] = drawn
    pictures = bench.mixed(1.0, 1.0)
    judged["pair"] = bench.judged(pictures)
    distance = {"pair": bench.distance(pictures)}
    if options.quick:
        return {"judged": judged, "distance": distance}
    pictures = bench.presets()
    judged["presets layout + style"] = bench.judged(pictures)
    distance["presets"] = bench.distance(pictures)
    none = [{"scale": 0.0} for _ in bench.pairs[: options.cross]]
    judged["no reference (control)"] = bench.judged(bench.generate(none))
    judged["content alone"] = bench.judged(bench.mixed(1.0, 0.0))
    judged["style alone"] = bench.judged(bench.mixed(0.0, 1.0))
    for scale in SCALES:
        made = bench.mixed(scale, 1.0, options.cross)
        judged[f"content {scale:g}, style 1"] = bench.judged(made)
    for scale in SCALES:
        made = bench.mixed(1.0, scale, options.cross)
        judged[f"content 1, style {scale:g}"] = bench.judged(made)
    variety = {part: bench.variety(part, options.seeds) for part in ("content", "style")}
    without = judge.classify(bench.generate([{"scale": 0.0}] * options.seeds))
    return {
        "judged": judged,
        "distance": distance,
        "different words": {**variety, "no reference": different(without)},
    }


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--stack", choices=sorted(bundled.FOLDERS), default=bundled.NAME)
    parser.add_argument("--adapter", default=bundled.PAIR, help="a file that holds a pair")
    parser.add_argument("--count", type=int, default=96, help="pairs of references")
    parser.add_argument("--cross", type=int, default=48, help="of them for the scales between")
    parser.add_argument("--seeds", type=int, default=32, help="pictures of one reference alone")
    parser.add_argument("--steps", type=int, default=bundled.STEPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="the pair alone")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    return parser.parse_args()


def main() -> None:
    """Measure, print, write."""
    options = arguments()
    started = time.process_time()
    with tqdm(unit="picture") as bar:
        report = measure(Bench(options, bar))
    report["cpu seconds"] = round(time.process_time() - started, 1)
    text = table(report["judged"], COLUMNS)
    for name in ("distance", "different words", "cpu seconds"):
        if name in report:
            text += f"\n\n{name}: {report[name]}"
    write_report(report, text, options)


if __name__ == "__main__":
    main()
