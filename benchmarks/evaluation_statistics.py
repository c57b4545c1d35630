"""Do the intervals and tests of `imageprompt.evaluation` hold what they promise?

    python benchmarks/evaluation_statistics.py --json statistics.json

Simulated studies whose truth is known: prompts with an effect of their own, and seeds within each.
Coverage is how often a 95 % interval holds the true mean; "called different" how often two
identical adapters have p < .05; power how often a true difference is found by as many prompts as
`prompts_needed` asks for. The last column is the standard error of the share.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from imageprompt.evaluation.statistics.intervals import (
    Method,
    jackknife,
    mean_interval,
    share_interval,
    wilson,
)
from imageprompt.evaluation.statistics.paired import (
    Spread,
    choices_needed,
    compare_differences,
    prompts_needed,
    sign_flip_p,
)

Array = NDArray[np.float64]
Row = dict[str, Any]
BETWEEN, WITHIN = 0.06, 0.05  # standard deviations of prompts and of seeds, as of a cosine
SEEDS = 4
METHODS: tuple[Method, ...] = ("percentile", "bca", "t", "studentised")
EFFECTS: dict[str, Callable[[np.random.Generator, int], Array]] = {
    "normal": lambda rng, count: rng.normal(0, 1, count),
    "skewed": lambda rng, count: rng.exponential(1, count) - 1,
}


def study(
    rng: np.random.Generator, prompts: int, mean: float, effect: str = "normal"
) -> tuple[Array, Array]:
    """Values of a metric [prompts * SEEDS], and the prompt of each."""
    own = BETWEEN * EFFECTS[effect](rng, prompts)
    seeds = rng.normal(0, WITHIN, (prompts, SEEDS))
    return (mean + own[:, None] + seeds).ravel(), np.repeat(np.arange(prompts), SEEDS)


def row(what: str, prompts: int, hits: int, studies: int, wanted: str) -> Row:
    """A share of the studies."""
    share = hits / studies
    error = math.sqrt(max(share * (1 - share), 1 / studies) / studies)
    return {"what": what, "prompts": prompts, "share": share, "wanted": wanted, "error": error}


def coverage(prompts: int, effect: str, method: Method, studies: int) -> Row:
    """How often the interval of a mean holds it."""
    rng = np.random.default_rng(1)
    hits = sum(
        0.7 in mean_interval(*study(rng, prompts, 0.7, effect), method=method)
        for _ in range(studies)
    )
    return row(f"coverage, {effect} prompts, {method}", prompts, hits, studies, ".93-.97")


def seeds_alone(prompts: int, studies: int) -> Row:
    """What happens if seeds are taken for independent."""
    rng = np.random.default_rng(1)
    hits = sum(
        0.7 in mean_interval(study(rng, prompts, 0.7)[0], method="percentile")
        for _ in range(studies)
    )
    return row("coverage, seeds taken for independent", prompts, hits, studies, "")


def share_coverage(prompts: int, win_rate: float, studies: int) -> Row:
    """How often the interval of a win rate holds it; prompts differ in theirs."""
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(studies):
        own = rng.beta(4 * win_rate, 4 * (1 - win_rate), prompts)
        wins = rng.random((prompts, SEEDS)) < own[:, None]
        hits += win_rate in share_interval(wins.ravel(), np.repeat(np.arange(prompts), SEEDS))
    return row(f"coverage, win rate {win_rate:g}", prompts, hits, studies, ".93-.97")


def set_coverage(about: Literal["value", "corrected"], studies: int) -> Row:
    """How often the jackknife's interval holds the Frechet distance of the distributions."""
    rng = np.random.default_rng(6)
    scale, shift, prompts = np.linspace(0.5, 1.5, 8), 0.2, 50
    truth = 8 * shift**2 + float(np.square(scale - 1).sum())
    labels = np.repeat(np.arange(prompts), SEEDS)
    hits = 0
    for _ in range(studies):
        own = rng.normal(0, 0.5, (prompts, 1, 8)) + rng.normal(0, 0.75**0.5, (prompts, SEEDS, 8))
        rows = (shift + own * scale).reshape(-1, 8)
        found = jackknife(lambda kept, x=rows: {"": frechet(x[kept])}, labels, about=about)
        hits += truth in found[""].interval
    return row(f"coverage, Frechet distance, {about}", prompts, hits, studies, ".93-.97")


def frechet(rows: Array) -> float:
    """The Frechet distance of rows [n, d] from a standard normal distribution."""
    mean, covariance = rows.mean(0), np.cov(rows.T)
    roots = np.sqrt(np.linalg.eigvalsh(covariance).clip(0))
    return float(mean @ mean + np.square(roots - 1).sum())


def called_different(prompts: int, effect: str, studies: int) -> Row:
    """Two identical adapters: differences around 0."""
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(studies):
        (a, labels), (b, _) = (study(rng, prompts, 0.7, effect) for _ in range(2))
        hits += sign_flip_p(b - a, labels, flips=2000) < 0.05
    return row(f"called different, {effect} prompts", prompts, hits, studies, "<= .05")


def power(difference: float, studies: int) -> Row:
    """A true difference, at the predicted number of prompts."""
    needed = prompts_needed(difference, Spread(BETWEEN**2, WITHIN**2).of_prompt_means(SEEDS))
    rng = np.random.default_rng(4)
    hits = 0
    for _ in range(studies):
        values, labels = study(rng, needed, difference)
        hits += compare_differences(values, labels).p < 0.05
    return row(f"power, difference {difference:g}", needed, hits, studies, ".80")


def power_of_choices(preference: float, studies: int) -> Row:
    """A true preference, at the predicted number of choices: Wilson's interval leaves .5 out."""
    needed = choices_needed(preference)
    wins = np.random.default_rng(5).binomial(needed, preference, studies)
    hits = sum(0.5 not in wilson(int(won), needed) for won in wins)
    return row(f"power, {preference:.0%} preferred, choices", needed, hits, studies, ".80")


def rows(studies: int) -> Iterator[Row]:
    """All that is measured."""
    for effect in EFFECTS:
        for prompts in (8, 10, 20, 50):
            for method in METHODS:
                yield coverage(prompts, effect, method, studies)
    yield seeds_alone(20, studies)
    for prompts in (10, 20, 50):
        for win_rate in (0.5, 0.8):
            yield share_coverage(prompts, win_rate, studies)
    yield set_coverage("value", studies)
    yield set_coverage("corrected", studies)
    for effect in EFFECTS:
        for prompts in (8, 12, 20, 50):
            yield called_different(prompts, effect, studies)
    for difference in (0.05, 0.03, 0.02):
        yield power(difference, studies)
    for preference in (0.6, 0.7):
        yield power_of_choices(preference, studies)


def main() -> None:
    """Simulate, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = list(tqdm(rows(options.studies), total=54, unit="row", disable=None))
    print("| what | prompts | share | wanted | ± |\n|---|---|---|---|---|")
    for one in found:
        cells = (one["what"], one["prompts"], f"{one['share']:.3f}", one["wanted"])
        print(f"| {' | '.join(map(str, cells))} | {one['error']:.3f} |")
    if options.json:
        options.json.write_text(json.dumps({"rows": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
