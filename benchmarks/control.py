"""Controls on the bundled stack: presets, masks, schedules, scales and fusions, judged.

    python benchmarks/control.py --json control.json --pictures docs

Held-out references (half of them pairs of shape and colour that training never saw), the Plus
adapter, and texts that contradict the reference in the attributes they name. The stack's
independent judge reads the words of every picture, simple statistics compare layouts; 95 %
intervals.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

import control_pictures
from control_bench import SIDE, Bench, Layer, agreement, mean
from fidelity import Cell, Words, table, wilson, write_report
from imageprompt.demo import judge, pipeline, scenes

LOOK = ("colour", "texture", "background", "style")
BY_BLOCK_NAME = {
    "style": {"up_blocks.0": 1.0},
    "layout": {"down_blocks.1": 1.0, "mid_block": 1.0},
}
"""Sites that the block names suggest (the roles that InstantStyle found on SD1.5)."""
AGAINST = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
SCALES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.25)
ENDS = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
FUSIONS = ("concat", "add", "average", "norm average", "max", "min", "subtract")


# ── experiments ───────────────────────────────────────────────────────────────────────────────────


def presets(bench: Bench) -> dict[str, Any]:
    """Style with a text that names the shape; layout with a text that names the look."""
    report: dict[str, Any] = {}
    for preset, names in (("style", ("shape",)), ("layout", LOOK)):
        named, texts = bench.contradicting(names)
        report[preset] = rows = {}
        for name, controls in (
            ("words alone", {"scale": 0.0}),
            ("all sites, scale 1", {}),
            ("all sites, scale 0.5", {"scale": 0.5}),
            (f"preset {preset}", {"preset": preset}),
            ("the sites that block names suggest", {"scale": BY_BLOCK_NAME[preset]}),
        ):
            pictures = bench.generate(texts, (bench.references, controls))
            found = judge.classify(pictures)
            rows[name] = {
                "reference": agreement(found, bench.scenes),
                "text": {key: agreement(found, named)[key] for key in names},
                "layout": bench.layout_similarity(pictures),
            }
    return report


def masks(bench: Bench) -> dict[str, Any]:
    """Two references, one half each: wide pictures judged by half, square ones by background."""
    texts = ["a shape"] * len(bench.scenes)
    report: dict[str, Any] = {}
    for name, masked in (("left / right masks", True), ("no masks", False)):
        pictures = bench.generate(
            texts, *_halves(bench, (2 * SIDE, SIDE), masked=masked), size=(2 * SIDE, SIDE)
        )
        halves = [
            judge.classify([picture.crop((x, 0, x + SIDE, SIDE)) for picture in pictures])
            for x in (0, SIDE)
        ]
        report[f"128x64, {name}"] = {
            "left half is the left reference": agreement(halves[0], bench.scenes),
            "right half is the right reference": agreement(halves[1], bench.others),
            "left half is the right reference": agreement(halves[0], bench.others),
            "right half is the left reference": agreement(halves[1], bench.scenes),
        }
        pictures = bench.generate(texts, *_halves(bench, (SIDE, SIDE), masked=masked))
        report[f"64x64, {name}"] = {
            "left half is the left reference": _background_matches(
                pictures, bench.scenes, left=True
            ),
            "right half is the right reference": _background_matches(
                pictures, bench.others, left=False
            ),
        }
    return report


def _halves(bench: Bench, size: tuple[int, int], *, masked: bool) -> Iterator[Layer]:
    """The first reference on the left half, the second on the right; unmasked: both everywhere."""
    left = np.zeros(size[::-1], np.float32)
    left[:, : size[0] // 2] = 1
    for references, mask in ((bench.references, left), (bench.second, 1 - left)):
        # two at full scale everywhere would be twice the intended strength
        yield references, {"mask": mask} if masked else {"scale": 0.5}


def _background_matches(
    pictures: Sequence[Image.Image], expected: Sequence[scenes.Scene], *, left: bool
) -> dict[str, Cell]:
    """How often the upper corner of a half has the colour of the reference's background."""
    matches = [
        _corner_colour(picture, left=left) == scene.background
        for picture, scene in zip(pictures, expected, strict=True)
    ]
    return {"background": wilson(sum(matches), len(matches))}


def _corner_colour(picture: Image.Image, *, left: bool) -> str:
    """The palette's nearest name for the upper corner, where background gradients start."""
    pixels = np.asarray(picture.convert("RGB"), np.float64)
    rim = pixels[1:8, :6] if left else pixels[1:8, -6:]
    palette = np.asarray([scenes.PALETTE[name] for name in scenes.COLOURS], np.float64)
    nearest = np.square(palette - np.median(rim.reshape(-1, 3), axis=0)).sum(1).argmin()
    return scenes.COLOURS[int(nearest)]


def schedules(bench: Bench) -> dict[str, Any]:
    """The reference for a part of the schedule: what remains of it, and what the text decides."""
    named, texts = bench.contradicting(("colour", "texture"))
    report: dict[str, Any] = {}
    for end in ENDS:
        controls = {"schedule": f"0-{end}"} if end else {"scale": 0.0}
        report[f"to {end:g}"] = _judged(
            bench, bench.generate(texts, (bench.references, controls)), named
        )
    late = {"schedule": "0.4-1"}
    report["from 0.4"] = _judged(bench, bench.generate(texts, (bench.references, late)), named)
    return report


def _judged(
    bench: Bench, pictures: Sequence[Image.Image], named: Sequence[scenes.Scene]
) -> dict[str, Any]:
    found = judge.classify(pictures)
    obeyed = agreement(found, named)
    return {
        "reference": agreement(found, bench.scenes),
        "text": {name: obeyed[name] for name in ("colour", "texture")},
        "layout": bench.layout_similarity(pictures),
    }


def sweep(bench: Bench) -> dict[str, Any]:
    """The same texts and seeds at growing scale: similarity to the reference."""
    texts = ["a shape"] * len(bench.scenes)
    cosines: dict[str, list[float]] = {}
    report: dict[str, Any] = {}
    targets = bench.embed([one[0] for one in bench.references])
    for scale in SCALES:
        pictures = bench.generate(texts, (bench.references, {"scale": scale}))
        cosine = (bench.embed(pictures) * targets).sum(1).tolist()
        cosines[f"{scale:g}"] = cosine
        words = agreement(judge.classify(pictures), bench.scenes)
        report[f"{scale:g}"] = {
            "cosine": mean(cosine),
            "reference": words,
            "layout": bench.layout_similarity(pictures),
        }
    steps = list(cosines.items())
    for (_, before), (name, after) in pairwise(steps):
        report[name]["gain"] = mean([b - a for a, b in zip(before, after, strict=True)])
    return report


def against(bench: Bench) -> dict[str, Any]:
    """Growing scale with texts that name another shape: whose shape appears?"""
    named, texts = bench.contradicting(("shape",))
    report: dict[str, Any] = {}
    for scale in AGAINST:
        found = judge.classify(bench.generate(texts, (bench.references, {"scale": scale})))
        words = agreement(found, bench.scenes)
        report[f"{scale:g}"] = {
            "text's": agreement(found, named)["shape"],
            "reference's": words["shape"],
        }
    return report


def fusions(bench: Bench) -> dict[str, Any]:
    """Two references, where they agree and where they differ; and style of one, layout of other."""
    texts = ["a shape"] * len(bench.scenes)
    both = [a + b for a, b in zip(bench.references, bench.second, strict=True)]
    report: dict[str, Any] = {}
    for name in FUSIONS:
        found = judge.classify(bench.generate(texts, (both, {"fusion": name})))
        report[name] = _shared(bench, found)
    found = judge.classify(
        bench.generate(
            texts, (bench.references, {"preset": "layout"}), (bench.second, {"preset": "style"})
        )
    )
    report["layout of the first, style of the second"] = {
        "of the first": agreement(found, bench.scenes),
        "of the second": agreement(found, bench.others),
    }
    return report


def _shared(bench: Bench, found: Sequence[Words]) -> dict[str, Any]:
    """Over all words: kept where both references agree, else those of the first and second."""
    counts: dict[str, list[bool]] = {"kept": [], "of the first": [], "of the second": []}
    for words, first, second in zip(found, bench.scenes, bench.others, strict=True):
        for name, word in words.items():
            a, b = getattr(first, name), getattr(second, name)
            if a == b:
                counts["kept"].append(word == a)
            else:
                counts["of the first"].append(word == a)
                counts["of the second"].append(word == b)
    cells: dict[str, Any] = {name: wilson(sum(row), len(row)) for name, row in counts.items()}
    either = [a or b for a, b in zip(counts["of the first"], counts["of the second"], strict=True)]
    return cells | {"of either": wilson(sum(either), len(either))}


EXPERIMENTS: Mapping[str, Callable[[Bench], dict[str, Any]]] = {
    "presets": presets,
    "masks": masks,
    "schedules": schedules,
    "sweep": sweep,
    "against": against,
    "fusions": fusions,
}
SETS = {
    "presets": 10,
    "masks": 4,
    "schedules": len(ENDS) + 1,
    "sweep": len(SCALES),
    "against": len(AGAINST),
    "fusions": len(FUSIONS) + 1,
}
"""Pictures of each experiment, in sets of one per reference."""


# ── report ──────────────────────────────────────────────────────────────────────────────────────


def markdown(report: Mapping[str, Any]) -> str:
    """Every experiment as a table."""
    parts = []
    for experiment in EXPERIMENTS:
        if experiment in report:
            parts += [f"### {experiment}", "", *_tables(report[experiment]), ""]
    parts.append(f"Settings: {json.dumps(report['settings'])}")
    return "\n".join(parts)


def _tables(found: Mapping[str, Any]) -> Iterator[str]:
    """Nested cells as rows; the innermost names are the columns."""
    rows: dict[str, dict[str, Cell]] = {}
    _flatten(found, (), rows)
    columns = list(dict.fromkeys(name for cells in rows.values() for name in cells))
    yield table(rows, columns)


def _flatten(
    found: Mapping[str, Any], path: tuple[str, ...], rows: dict[str, dict[str, Cell]]
) -> None:
    for name, value in found.items():
        if "share" in value:
            rows.setdefault(": ".join(path), {})[name] = value
        else:
            _flatten(value, (*path, name), rows)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=96, help="number of references")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=pipeline.STEPS)
    parser.add_argument("--adapter", default="plus")
    parser.add_argument("--only", nargs="*", default=list(EXPERIMENTS), choices=EXPERIMENTS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="draw the guide's pictures")
    return parser.parse_args()


def main() -> None:
    """Measure, print, write."""
    options = arguments()
    torch.set_num_threads(1)
    started = time.monotonic()
    bar = tqdm(total=options.count * sum(SETS[name] for name in options.only), unit="picture")
    bench = Bench(options, bar.update)
    report: dict[str, Any] = {name: EXPERIMENTS[name](bench) for name in options.only}
    if options.pictures:
        control_pictures.draw(bench, options.pictures)
    bar.close()
    keys = ("count", "seed", "steps", "adapter")
    report["settings"] = {key: getattr(options, key) for key in keys}
    report["settings"]["seconds"] = round(time.monotonic() - started)
    write_report(report, markdown(report), options)


if __name__ == "__main__":
    main()
