"""Does `imageprompt tune` find the scale that a whole sweep finds, and with how many pictures?

    python benchmarks/tune.py [--adapter base --adapter plus] [--count 4] [--seeds 1]
                              [--folder DIR | --study DIR] [--json FILE] [--quick]

A study has all scales in steps of 0.05 on the bundled stack: drawn references, each with five
texts. The search then asks for the settings that it wants; the pictures are those of the study, so
both have the same. "Optimum" are all scales whose score is the best of the sweep: several where it
is flat. A second part draws the references again with replacement (200 times): how often the
search is within 0.05 of the optimum of those, and by how much the score falls short otherwise.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imageprompt.evaluation.balance import Axes
from imageprompt.evaluation.scale_search import Rule, ScaleSearch, scales_up_to
from imageprompt.evaluation.study.results import Results, read_results
from imageprompt.evaluation.study.run import evaluate

RULES = ("knee", ">= 0.9", ">= 0.8", ">= 0.7", ">= 90%", ">= 80%", ">= 70%")
RESAMPLES = 200
WITHIN = 0.05
Values = dict[float, NDArray[np.float64]]
"""Scale -> likeness and text of each picture, [n, 2]."""


def values_of(results: Results, adapter: str, axes: Axes) -> tuple[Values, list[str]]:
    """The values by scale, 0 for text alone, in one order, and the reference of each row."""
    parts = {0.0: results.where(row="control")}
    own = results.where(row="adapter", adapter=adapter)
    parts |= {float(scale): own.where(scale=float(scale)) for scale in np.unique(own.scale)}
    keys: list[Any] = []
    values = {}
    for scale, part in parts.items():
        rows = {
            key: row
            for row, key in enumerate(
                zip(part.reference, part.prompt, part.seed.tolist(), strict=True)
            )
        }
        keys = keys or sorted(rows, key=str)
        order = [rows[key] for key in keys]
        values[scale] = np.stack(
            [part.metrics[name][order] for name in (axes.likeness, axes.text)], 1
        )
    return values, [key[0] for key in keys]


def search(rule: Rule, values: Values, rows: Sequence[int] | slice = slice(None)) -> dict[str, Any]:
    """What the search finds, beside the optimum of the sweep."""

    def at(scale: float) -> tuple[float, float]:
        likeness, text = np.nanmean(values[scale][rows], axis=0)
        return float(likeness), float(text)

    scales = [scale for scale in values if scale]
    searched, known = ScaleSearch(rule, scales), {0.0: at(0.0)}
    while (scale := searched.next(known)) is not None:
        known[scale] = at(scale)
    points = np.array([at(scale) for scale in values])
    score = rule.score(points[:, 0], points[:, 1], points[0, 1])[1:]
    best = searched.best(known)
    optimum = [scales[i] for i in np.flatnonzero(score >= score.max() - 1e-12)]
    if not np.isfinite(score).any():
        optimum = []
    distance = None if best is None or not optimum else min(abs(best - one) for one in optimum)
    return {
        "found": best,
        "optimum": optimum,
        "distance": distance,
        "short by": None if distance is None else float(score.max() - score[scales.index(best)]),
        "share": settings_share(values, len(known) - 1),
    }


def settings_share(values: Values, measured: int) -> float:
    """Pictures of the search as a share of those of the sweep, text alone counted in both."""
    return (measured + 1) / len(values)


def resampled(rule: Rule, values: Values, references: Sequence[str]) -> dict[str, Any]:
    """The search on references drawn again: share within 0.05, and shortfall."""
    rng = np.random.default_rng(0)
    distinct = sorted(set(references))
    rows_of = {name: [i for i, one in enumerate(references) if one == name] for name in distinct}
    found = []
    for _ in range(RESAMPLES):
        drawn = rng.integers(0, len(distinct), len(distinct))
        rows = [row for index in drawn for row in rows_of[distinct[index]]]
        one = search(rule, values, rows)
        if one["optimum"]:
            found.append(one)
    near = [one["distance"] is not None and one["distance"] <= WITHIN + 1e-9 for one in found]
    return {
        "of": len(found),
        "within": float(np.mean(near)) if near else None,
        "mean share": float(np.mean([one["share"] for one in found])) if found else None,
        "mean short by": float(np.mean([one["short by"] or 0.0 for one in found]))
        if found
        else None,
    }


def study(folder: Path, adapters: Sequence[str], options: argparse.Namespace) -> Results:
    """All scales on the bundled stack; goes on where it was stopped."""
    keys = {
        "output": str(folder),
        "adapters": [*adapters],
        "scales": scales_up_to(1.0),
        "count": options.count,
        "seeds": options.seeds,
        "steps": options.steps,
        "metrics": ["attributes", "words"],
        "ceiling": False,
    }
    return evaluate(keys, log=print).results()


def measure(results: Results) -> list[dict[str, Any]]:
    """A row for each adapter and rule."""
    axes = Axes.of(results.metrics)
    assert axes is not None
    rows = []
    for adapter in results.adapter.distinct():
        values, references = values_of(results, adapter, axes)
        for text in RULES:
            rule = Rule() if text == "knee" else Rule.of(text)
            row = {"adapter": adapter, "rule": text, **search(rule, values)}
            rows.append(row | {"resampled": resampled(rule, values, references)})
    return rows


def print_rows(rows: Sequence[dict[str, Any]]) -> None:
    print(
        "adapter  rule      found  optimum                 pictures  within .05  short by  pictures"
    )
    for row in rows:
        again = row["resampled"]
        optimum = ", ".join(f"{scale:g}" for scale in row["optimum"]) or "-"
        found = "-" if row["found"] is None else f"{row['found']:g}"
        near = "-" if again["within"] is None else f"{again['within']:.0%}"
        rest = (
            ""
            if again["within"] is None
            else (f"{near:<10}  {again['mean short by']:<8.4f}  {again['mean share']:.0%}")
        )
        print(
            f"{row['adapter']:<7}  {row['rule']:<8}  {found:<5}  {optimum:<22}  "
            f"{row['share']:<8.0%}  {rest}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--adapter", action="append", help="default: base and plus")
    parser.add_argument("--count", type=int, default=4, help="references (4)")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, help="default: the stack's")
    parser.add_argument("--folder", type=Path, help="keep the study there")
    parser.add_argument("--study", type=Path, help="a study of all scales that exists")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="one adapter and reference, 2 steps")
    options = parser.parse_args()
    adapters = options.adapter or ["base", "plus"]
    if options.quick:
        adapters, options.count, options.steps = adapters[:1], 1, 2
    with tempfile.TemporaryDirectory() as name:
        if options.study is not None:
            results = read_results(options.study)
        else:
            results = study(options.folder or Path(name), adapters, options)
        rows = measure(results)
    print_rows(rows)
    if options.json is not None:
        options.json.write_text(json.dumps({"rows": rows}, indent=1))


if __name__ == "__main__":
    main()
