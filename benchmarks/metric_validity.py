"""Which metrics rank pictures rightly, where the truth is known: on the bundled stack.

    python benchmarks/metric_validity.py --folder build/validity --json validity.json

A study of the bundled adapters at several scales, without texts: the truth about a picture is the
share of the reference's five words that the judge reads in it. Spearman's correlation of every
metric with that share is told over the means of the settings (adapter and scale), and over single
pictures. Then a known degradation, scale 0.4 instead of 1: how many references are needed to find
it by the formula of `compare`, and how often so many, drawn from those of the study, do.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
TRUTH = "attributes"
METRICS = ("clip-i", "dino", "lab", "delta-e", "copying", "psnr", "ssim")
DISTANCES = ("lab", "delta-e")
SCALES = (0.2, 0.4, 0.6, 0.8, 1.0)
TRIALS = 400


def ranks(values: Array) -> Array:
    """Ranks from 0; equal values share their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    starts = np.cumsum(counts) - counts
    found: Array = (starts + (counts - 1) / 2)[inverse]
    return found


def spearman(a: Array, b: Array) -> float:
    """Correlation of the ranks."""
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def run_study(folder: Path, count: int, steps: int | None) -> Any:
    """The results of the study, made or resumed."""
    from imageprompt.evaluation.study.config import StudyConfig
    from imageprompt.evaluation.study.run import Study

    config = StudyConfig(
        output=str(folder),
        count=count,
        prompts=("",),
        scales=SCALES,
        steps=steps,
        metrics=(TRUTH, *METRICS),
        batch_size=16,
    )
    return Study(config).run(progress=True).results()


def correlations(results: Any) -> dict[str, dict[str, float]]:
    """Metric -> its correlation over settings and over pictures; the sign is that of likeness."""
    rows = results.row.equal("adapter")
    truth, scale = results.metrics[TRUTH][rows], results.scale[rows]
    adapter = np.array([str(one) for one in results.adapter.take(np.flatnonzero(rows))])
    settings = sorted({*zip(adapter.tolist(), scale.tolist(), strict=True)})
    masks = [(adapter == name) & (scale == s) for name, s in settings]
    found = {}
    for name in METRICS:
        values = (-1 if name in DISTANCES else 1) * results.metrics[name][rows]
        kept = np.isfinite(values) & np.isfinite(truth)
        means = [np.array([v[m & kept].mean() for m in masks]) for v in (values, truth)]
        found[name] = {
            "settings": spearman(*means),
            "pictures": spearman(values[kept], truth[kept]),
        }
    return found


def degradation(results: Any, adapter: str, metric: str) -> dict[str, float]:
    """Scale 1 against 0.5 of an adapter: the references needed, and how often they suffice."""
    from imageprompt.evaluation.statistics.paired import compare_differences, prompts_needed

    rows = results.row.equal("adapter") & results.adapter.equal(adapter)
    values = {
        scale: dict(
            zip(
                list(results.reference.take(np.flatnonzero(rows & (results.scale == scale)))),
                results.metrics[metric][rows & (results.scale == scale)].tolist(),
                strict=True,
            )
        )
        for scale in (0.4, 1.0)
    }
    differences = np.array([values[1.0][one] - values[0.4][one] for one in values[1.0]])
    needed = prompts_needed(float(differences.mean()), float(differences.std(ddof=1)))
    rng = np.random.default_rng(0)
    drawn = [differences[rng.integers(0, len(differences), needed)] for _ in range(TRIALS)]
    hits = [compare_differences(one).p < 0.05 for one in drawn if one.std() > 0]
    return {
        "difference": float(differences.mean()),
        "references_needed": needed,
        "found": sum(hits) / TRIALS,
    }


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, default=Path("build/validity"))
    parser.add_argument("--count", type=int, default=96, help="references")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = run_study(options.folder, options.count, options.steps)
    ranked = correlations(results)
    print(f"{'Spearman with the judge':26}{'settings':>10}{'pictures':>10}")
    for name, row in ranked.items():
        print(f"{name:26}{row['settings']:10.3f}{row['pictures']:10.3f}")
    known = {
        f"{adapter}, {metric}": degradation(results, adapter, metric)
        for adapter in ("base", "plus")
        for metric in (TRUTH, "clip-i", "lab")
    }
    print(f"\n{'scale 0.4 against 1':26}{'difference':>12}{'needed':>8}{'found':>8}")
    for name, row in known.items():
        print(f"{name:26}{row['difference']:12.3f}{row['references_needed']:8d}{row['found']:8.2f}")
    if options.json:
        report = {"spearman": ranked, "degradation": known, "references": options.count}
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
