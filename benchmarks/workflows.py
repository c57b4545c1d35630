"""Workflows on the bundled stack: what the judge reads in their pictures, with controls.

    python benchmarks/workflows.py [--only product restyle] [--count 96] [--steps 12] [--sheets DIR]

References are held-out scenes in pairs that differ in all five words. Beside each workflow stand a
control (what is had without it) and a ceiling (the drawn scene that is wanted); shares have 95 %
intervals (Wilson), means those of Student's t over the pairs. Prints one JSON object a row.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import imageprompt as ip
from imageprompt.core import bundled
from imageprompt.demo import scenes
from imageprompt.demo.judge import classify
from imageprompt.demo.scenes import Scene
from imageprompt.evaluation.metrics.delta_e import delta_e
from imageprompt.evaluation.statistics.intervals import mean_interval, share_interval
from imageprompt.workflows import _pixels
from imageprompt.workflows.result import draw_sheet

Pair = tuple[Scene, Scene]
Row = Mapping[str, Sequence[float]]
SHOWN = 12  # pairs on a sheet


def pairs(count: int, seed: int) -> list[Pair]:
    """Held-out scenes, two and two, that share no word; the first's colour is not the second's
    background."""
    found: list[Pair] = []
    for first, second in zip(
        scenes.stream("test", seed=seed), scenes.stream("test", seed=seed + 1000), strict=False
    ):
        apart = all(first.words()[name] != second.words()[name] for name in scenes.ATTRIBUTES)
        if apart and first.colour != second.background:
            found.append((first, second))
        if len(found) == count:
            break
    return found


class Bench:
    """The pairs, an engine, and what is printed."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.pairs = pairs(options.count, options.seed)
        self.engine = ip.Engine(options.base)
        self.steps, self.sheets = options.steps, options.sheets
        self.stack, self.masks = options.base, options.masks

    def workflow(self, name: str, number: int, **inputs: Any) -> Any:
        given = {"steps": self.steps, "seed": 1000 + number, "engine": self.engine}
        return getattr(ip.workflows, name)(progress=False, **{**given, **inputs})

    def row(
        self,
        name: str,
        make: Callable[[Pair, int], tuple[Image.Image, dict[str, float]]],
        inputs: int = 2,
    ) -> None:
        """One row: `make` gives a picture and its figures; shares are 0 or 1 for each pair."""
        started, columns, cells = time.process_time(), dict[str, list[float]](), []
        for number, pair in enumerate(self.pairs):
            picture, figures = make(pair, number)
            for key, value in figures.items():
                columns.setdefault(key, []).append(float(value))
            if number < SHOWN:
                cells += [("", scenes.draw(one), True) for one in pair[:inputs]]
                cells.append((name, picture, False))
        shown = {"row": name, "pairs": len(self.pairs), "steps": self.steps, "base": self.stack}
        shown["cpu_s"] = round(time.process_time() - started, 1)
        print(json.dumps(shown | {key: summary(one) for key, one in columns.items()}), flush=True)
        if self.sheets is not None:
            self.sheets.mkdir(parents=True, exist_ok=True)
            draw_sheet(cells, columns=2 * (inputs + 1)).save(self.sheets / f"{name}.png")


def summary(values: Sequence[float]) -> list[float]:
    """Mean and its interval."""
    share = set(values) <= {0.0, 1.0} and any(values)
    interval = share_interval(values) if share else mean_interval(values)
    return [round(one, 3) for one in (float(np.mean(values)), interval.low, interval.high)]


def read(picture: Image.Image, wanted: Mapping[str, str]) -> dict[str, float]:
    """For each wanted word, does the judge read it? And all of them?"""
    (found,) = classify([picture])
    right = {name: float(found[name] == word) for name, word in wanted.items()}
    return {**right, "all": float(all(right.values()))}


def wanted_style(scene: Scene) -> str:
    """The style word that a scene does not have."""
    return next(one for one in scenes.STYLES if one != scene.style)


def words(scene: Scene, *names: str) -> dict[str, str]:
    return {name: scene.words()[name] for name in names}


# ── product ─────────────────────────────────────────────────────────────────────────────────────

OBJECT = ("shape", "colour", "texture")


def product(bench: Bench) -> None:
    """The text names the background's style, always another than the style picture's."""

    def wanted(pair: Pair) -> dict[str, str]:
        product, style = pair
        own = {**words(product, *OBJECT), **words(style, "background")}
        return {**own, "style": wanted_style(style)}

    def text(pair: Pair) -> str:
        return f"a shape on a {wanted(pair)['style']} background"

    def by(*, given_mask: bool = True, **inputs: Any) -> Callable[[Pair, int], Any]:
        def make(pair: Pair, number: int) -> Any:
            one, two = map(scenes.draw, pair)
            mask = scenes.mask(pair[0]).astype(np.float32) if given_mask else None
            done = bench.workflow(
                "product", number, product=one, style=two, mask=mask, prompt=text(pair), **inputs
            )
            figures = read(done.images[0], wanted(pair))
            kept = ("product_difference", "seam", "seam_before")
            return done.images[0], figures | {name: done.measured[name] for name in kept}

        return make

    def average(pair: Pair, number: int) -> Any:
        made = bench.engine.generate(
            text(pair),
            list(map(scenes.draw, pair)),
            fusion="average",
            scale=1.0,
            steps=bench.steps,
            seed=1000 + number,
            progress=False,
        ).images[0]
        return made, read(made, wanted(pair))

    def drawn(pair: Pair, _: int) -> Any:
        picture = scenes.draw(
            replace(pair[0], **words(pair[1], "background"), style=wanted(pair)["style"])
        )
        return picture, read(picture, wanted(pair))

    bench.row("product, kept", by())
    bench.row("product, rendered", by(method="render"))
    bench.row("product: control, average of both pictures", average)
    bench.row("product: ceiling, drawn", drawn)
    if bench.masks:
        bench.row("product, kept, mask by flood fill", by(given_mask=False, holes="cut"))


# ── restyle ─────────────────────────────────────────────────────────────────────────────────────


def restyle(bench: Bench) -> None:
    look = ("colour", "texture", "background")

    def figures(picture: Image.Image, pair: Pair) -> dict[str, float]:
        found = read(picture, {**words(pair[0], "shape"), **words(pair[1], *look)})
        style = float(np.mean([found[name] for name in look]))
        distance = _pixels.colour_distance(picture, scenes.draw(pair[1]))
        return {"content": found["shape"], "style": style, **found, "lab": distance}

    def by(**inputs: Any) -> Callable[[Pair, int], Any]:
        def make(pair: Pair, number: int) -> Any:
            one, two = map(scenes.draw, pair)
            done = bench.workflow("restyle", number, content=one, style=two, **inputs)
            return done.images[0], figures(done.images[0], pair)

        return make

    def matched(pair: Pair, _: int) -> Any:
        picture = _pixels.matched_colours(*map(scenes.draw, pair))
        return picture, figures(picture, pair)

    def drawn(pair: Pair, _: int) -> Any:
        picture = scenes.draw(replace(pair[0], **words(pair[1], *look)))
        return picture, figures(picture, pair)

    bench.row("restyle, pair 1.0", by(method="pair", strengths=[1.0], scale=1.0))
    for strength in (1.6, 1.0):
        bench.row(f"restyle, layout {strength}", by(method="layout", strengths=[strength]))
    for strength in (0.95, 0.8):
        bench.row(f"restyle, img2img {strength}", by(strengths=[strength]))
    bench.row("restyle: control, Lab mean and covariance", matched)
    bench.row("restyle: ceiling, drawn", drawn)


# ── replace ─────────────────────────────────────────────────────────────────────────────────────


def replace_object(bench: Bench) -> None:
    def wanted(pair: Pair) -> dict[str, str]:
        return {**words(pair[1], *OBJECT), **words(pair[0], "background", "style")}

    def figures(picture: Image.Image, pair: Pair) -> dict[str, float]:
        found = read(picture, wanted(pair))
        inside = float(np.mean([found[name] for name in OBJECT]))
        return {"inside": inside, **found}

    def by(**inputs: Any) -> Callable[[Pair, int], Any]:
        def make(pair: Pair, number: int) -> Any:
            one, two = map(scenes.draw, pair)
            mask = scenes.mask(pair[0]).astype(np.float32)
            done = bench.workflow("replace", number, picture=one, mask=mask, object=two, **inputs)
            kept = ("outside_difference", "seam", "seam_before")
            own = {name: done.measured[name] for name in kept}
            return done.images[0], figures(done.images[0], pair) | own

        return make

    def untouched(pair: Pair, _: int) -> Any:
        return scenes.draw(pair[0]), figures(scenes.draw(pair[0]), pair)

    def drawn(pair: Pair, _: int) -> Any:
        picture = scenes.draw(replace(pair[1], **words(pair[0], "background", "style")))
        return picture, figures(picture, pair)

    def pasted(pair: Pair, number: int) -> Any:
        one, two = map(scenes.draw, pair)
        mask = scenes.mask(pair[0]).astype(np.float32)
        done = bench.workflow(
            "replace", number, picture=one, mask=mask, object=two, steps=2, strength=0.5
        )
        picture = dict(done.shown)["pasted"]
        return picture, figures(picture, pair)

    bench.row("replace", by())
    bench.row("replace: control, cut out and pasted", pasted)
    bench.row("replace: control, the old picture", untouched)
    bench.row("replace: ceiling, drawn", drawn)


# ── colourise ───────────────────────────────────────────────────────────────────────────────────


def colourise(bench: Bench) -> None:
    """The reference has the same five words but the shape, and another place, size and turn."""
    rng = np.random.default_rng(3)
    references = []
    for first, second in bench.pairs:
        other = scenes.change(first, ["shape"], rng)
        place = {name: getattr(second, name) for name in ("x", "y", "radius", "rotation")}
        references.append(scenes.draw(replace(other, **place)))

    def workflow(pair: Pair, number: int) -> Any:
        truth = scenes.draw(pair[0])
        done = bench.workflow(
            "colourise", number, picture=truth, colours=references[number], truth=truth
        )
        figures = {"delta_e": done.measured["delta_e"]}
        figures["below_true_tint"] = float(figures["delta_e"] < error(true_tint(truth), truth))
        figures["lightness_error"] = done.measured["lightness_error"]
        return done.images[0], figures | read(
            done.images[0], words(pair[0], "colour", "background")
        )

    def error(picture: Image.Image, truth: Image.Image) -> float:
        return delta_e(_pixels.pixels(picture), _pixels.pixels(truth))

    def tinted(truth: Image.Image, colours: Image.Image) -> Image.Image:
        light = _pixels.lightness(truth)
        tint = np.broadcast_to(_pixels.mean_chroma(colours), (*light.shape, 2))
        return _pixels.with_lightness(light, tint)

    def true_tint(truth: Image.Image) -> Image.Image:
        return tinted(truth, truth)

    def baseline(of: Callable[[Image.Image, int], Image.Image]) -> Callable[[Pair, int], Any]:
        def make(pair: Pair, number: int) -> Any:
            truth = scenes.draw(pair[0])
            picture = of(truth, number)
            found = read(picture, words(pair[0], "colour", "background"))
            return picture, {"delta_e": error(picture, truth), **found}

        return make

    def grey(truth: Image.Image, _: int) -> Image.Image:
        light = _pixels.lightness(truth)
        return _pixels.with_lightness(light, np.zeros((*light.shape, 2)))

    bench.row("colourise", workflow)
    bench.row(
        "colourise: control, tint of the reference",
        baseline(lambda truth, number: tinted(truth, references[number])),
    )
    bench.row("colourise: control, the true mean tint", baseline(lambda truth, _: true_tint(truth)))
    bench.row("colourise: control, grey", baseline(grey))
    bench.row("colourise: ceiling, drawn", baseline(lambda truth, _: truth))


# ── variations ──────────────────────────────────────────────────────────────────────────────────


def variations(bench: Bench) -> None:
    def make(pair: Pair, number: int) -> Any:
        done = bench.workflow("variations", number, picture=scenes.draw(pair[0]), num_images=2)
        figures = {name: value for name, value in done.measured.items() if value is not None}
        return done.images[0], figures

    bench.row("variations", make, inputs=1)


def guide_pictures(bench: Bench, folder: Path) -> None:
    """The sheets of the guides in docs/workflows."""
    (one, two), (three, _), (ring, striped) = (bench.pairs[index] for index in (3, 0, 7))
    mask = scenes.mask(one).astype(np.float32)
    text = f"a shape on a {wanted_style(two)} background"
    summer = replace(scenes.change(three, ["shape"], np.random.default_rng(3)), rotation=0.1)
    inputs: Mapping[str, dict[str, Any]] = {
        "product": {
            "product": scenes.draw(one),
            "style": scenes.draw(two),
            "prompt": text,
            "num_images": 3,
        },
        "restyle": {
            "content": scenes.draw(ring),
            "style": scenes.draw(striped),
            "method": "layout",
        },
        "replace": {"picture": scenes.draw(one), "mask": mask, "object": scenes.draw(ring)},
        "colourise": {"picture": scenes.draw(three), "colours": scenes.draw(summer)},
        "variations": {"picture": scenes.draw(one), "num_images": 2},
    }
    for name, given in inputs.items():
        done = bench.workflow(name, 0, steps=20, **given)
        cells = [(label, image, True) for label, image in done.shown]
        cells += [(made.label, made.image, False) for made in done.pictures]
        sheet = draw_sheet(cells).quantize(128)
        sheet.save(folder / f"{name}.png", optimize=True)


BENCHES: Mapping[str, Callable[[Bench], None]] = {
    "product": product,
    "restyle": restyle,
    "replace": replace_object,
    "colourise": colourise,
    "variations": variations,
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=BENCHES, default=list(BENCHES))
    parser.add_argument("--count", type=int, default=96)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--base", default=bundled.NAME, choices=bundled.FOLDERS)
    parser.add_argument("--sheets", type=Path)
    parser.add_argument("--pictures", type=Path, help="only the sheets of the guides, into DIR")
    parser.add_argument("--masks", action="store_true", help="product with masks of its own, too")
    return parser.parse_args()


def main() -> None:
    warnings.simplefilter("ignore")
    options = arguments()
    bench = Bench(options)
    if options.pictures is not None:
        guide_pictures(bench, options.pictures)
        return
    for name in options.only:
        BENCHES[name](bench)


if __name__ == "__main__":
    main()
