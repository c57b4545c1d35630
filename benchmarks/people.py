"""People on the bundled stack: two references in their own halves, read by the judge.

    python benchmarks/people.py [--pairs 48] [--steps 12] [--refine 0 0.8] [--sheets DIR]

The stack has no faces: the references are held-out scenes that share no word, and the judge reads
each half. "own" is the share of five words that are those of the half's own reference, "other" of
the other reference's. The control has no regions; the ceiling is each reference alone, in a picture
of its own. Shares are means over the halves with 95 % intervals over the pairs (Student's t).
Prints one JSON object a row.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import imageprompt as ip
from imageprompt.demo import scenes
from imageprompt.demo.judge import classify
from imageprompt.evaluation.statistics.intervals import mean_interval
from imageprompt.workflows.result import draw_sheet
from workflows import Pair, pairs

SIDE = scenes.SIZE
SHOWN = 12  # pairs on a sheet


def own_and_other(halves: list[Any], pair: Pair) -> list[list[float]]:
    """[2 halves, 2]: share of words of the half's own scene, and of the other."""
    rows = []
    for index, words in enumerate(classify(halves)):
        sides = (pair[index], pair[1 - index])
        rows.append([float(np.mean([words[n] == s.words()[n] for n in words])) for s in sides])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=48)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seed", type=int, default=31)
    parser.add_argument("--refine", type=float, nargs="+", default=[0.0, 0.8])
    parser.add_argument("--sheets", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    engine, chosen = ip.Engine(), pairs(options.pairs, options.seed)
    common = {"steps": options.steps, "prompt": "a shape"}

    def together(refine: float) -> Callable[[Pair, int], Any]:
        def make(pair: Pair, number: int) -> Any:
            done = ip.workflows.people(
                person=[scenes.draw(one) for one in pair],
                refine=refine,
                seed=1000 + number,
                engine=engine,
                progress=False,
                **common,
            )
            return done.images[0]

        return make

    def without_regions(pair: Pair, number: int) -> Any:
        made = engine.generate(
            reference=[scenes.draw(one) for one in pair],
            scale=1.0,
            size=(2 * SIDE, SIDE),
            seed=1000 + number,
            progress=False,
            **common,
        )
        return made.images[0]

    def alone(pair: Pair, number: int) -> Any:
        made = [
            engine.generate(
                reference=scenes.draw(one), scale=1.0, seed=1000 + number, progress=False, **common
            ).images[0]
            for one in pair
        ]
        both = made[0].resize((2 * SIDE, SIDE))
        for index, one in enumerate(made):
            both.paste(one, (index * SIDE, 0))
        return both

    rows = {f"regions, refine {one:g}": together(one) for one in options.refine}
    rows |= {"control: without regions": without_regions, "ceiling: each alone": alone}
    for name, make in rows.items():
        measure(name, make, chosen, options)


def measure(
    name: str, make: Callable[[Pair, int], Any], chosen: list[Pair], options: argparse.Namespace
) -> None:
    """Print the row of `make`, which gives a picture of two halves for each pair."""
    started, shares, cells = time.process_time(), [], []
    for number, pair in enumerate(chosen):
        picture = make(pair, number)
        halves = [picture.crop((x, 0, x + SIDE, SIDE)) for x in (0, SIDE)]
        shares.append(own_and_other(halves, pair))
        if number < SHOWN:
            cells += [("", scenes.draw(one), True) for one in pair] + [("", picture, False)]
    figures = np.asarray(shares).mean(1)  # [pairs, 2]
    line: dict[str, Any] = {"row": name, "pairs": len(chosen), "steps": options.steps}
    for what, values in zip(("own", "other"), figures.T, strict=True):
        interval = mean_interval(values)
        line[what] = [round(float(x), 3) for x in (values.mean(), interval.low, interval.high)]
    line["cpu_s"] = round(time.process_time() - started, 1)
    print(json.dumps(line), flush=True)
    if options.sheets is not None:
        options.sheets.mkdir(parents=True, exist_ok=True)
        draw_sheet(cells).save(options.sheets / f"people-{name.split(':')[0]}.png")


if __name__ == "__main__":
    main()
