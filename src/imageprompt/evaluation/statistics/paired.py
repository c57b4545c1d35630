"""Comparing two adapters on the same prompts, references and seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike

from imageprompt.core.errors import OptionError
from imageprompt.evaluation.statistics.intervals import (
    CONFIDENCE,
    Array,
    Clusters,
    Interval,
    Labels,
    mean_interval,
    normal_quantile,
    share_interval,
    t_quantile,
)

Key = TypeVar("Key", bound=Hashable)

POWER = 0.8
MAX_EXACT = 16  # clusters: 2**15 patterns of signs, half of them mirrored
FLIPS = 20_000
MAX_FLIPPED = 1000  # clusters that are flipped apart; above it, several together
_LISTED = 5  # missing keys that a message names


@dataclass(frozen=True)
class PairedResult:
    """How values B differ from values A; positive where B's are larger.

    `interval` is that of the mean difference over clusters, `p` that of the sign-flip test,
    `win_rate` the share of pairs in which B's value is larger, ties counted half.
    `smallest_detectable` is the true difference that as many prompts would find with 80 % power.
    """

    difference: float
    interval: Interval
    p: float
    win_rate: float
    win_interval: Interval
    smallest_detectable: float
    pairs: int
    clusters: int


def paired(
    a: Mapping[Key, float],
    b: Mapping[Key, float],
    cluster_of: Callable[[Key], Hashable] = lambda key: key,
) -> PairedResult:
    """Compare two metrics by key, such as (prompt, reference, seed); `cluster_of` names the prompt.

    Raises OptionError for unequal sets, with the missing keys, and for values that are not finite.
    """
    for name, missing in (("A", b.keys() - a.keys()), ("B", a.keys() - b.keys())):
        if missing:
            shown = ", ".join(sorted(map(str, missing))[:_LISTED])
            more = f" and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
            raise OptionError(
                f"unequal sets: {name} lacks {len(missing)} of {len(a.keys() | b.keys())}",
                reason=f"{shown}{more}",
                hint="Generate what is missing, or compare what both have.",
            )
    keys = list(a)
    differences = [b[key] - a[key] for key in keys]
    return compare_differences(differences, [cluster_of(key) for key in keys])


def compare_differences(differences: ArrayLike, labels: Labels | None = None) -> PairedResult:
    """The same for differences B - A, [pairs], with the cluster label of each."""
    values = np.asarray(differences, np.float64).ravel()
    clusters = Clusters.of(values, labels)
    wins = (np.sign(values) + 1) / 2
    return PairedResult(
        difference=clusters.mean,
        interval=mean_interval(values, labels),
        p=sign_flip_p(values, labels),
        win_rate=float(wins.mean()),
        win_interval=share_interval(wins, labels),
        smallest_detectable=smallest_detectable(clusters),
        pairs=len(values),
        clusters=clusters.count,
    )


# ── tests ───────────────────────────────────────────────────────────────────────────────────────


def sign_flip_p(
    differences: ArrayLike, labels: Labels | None = None, *, flips: int = FLIPS, seed: int = 0
) -> float:
    """Two-sided p of the mean difference, if neither were better: signs of clusters flipped.

    The differences of one prompt flip together, since seeds are not independent. All patterns are
    tried for up to MAX_EXACT clusters, else `flips` drawn ones. Seven clusters cannot reach
    p < .01, nor five p < .05.
    """
    sums = Clusters.of(differences, labels).sums
    rng = np.random.default_rng(seed)
    if len(sums) > MAX_FLIPPED:  # flipping groups of clusters together is as valid a test
        dealt = rng.permutation(len(sums)) % MAX_FLIPPED
        sums = np.bincount(dealt, sums).astype(np.float64)
    observed = abs(float(sums.sum()))
    bound = observed - 1e-9 * float(np.abs(sums).sum())  # sums of the same terms, in another order
    if len(sums) <= MAX_EXACT:
        patterns = np.arange(2 ** (len(sums) - 1))[:, None] >> np.arange(len(sums)) & 1
        totals = np.abs(np.asarray((1.0 - 2.0 * patterns) @ sums))
        return float(np.mean(totals >= bound))
    extreme = 0
    for start in range(0, flips, 1000):
        rows = min(1000, flips - start)
        signs = 1.0 - 2.0 * rng.integers(0, 2, (rows, len(sums)), np.int8)
        extreme += int((np.abs(signs @ sums) >= bound).sum())
    return (extreme + 1) / (flips + 1)


def sign_test_p(wins: int, losses: int) -> float:
    """Two-sided exact p of so many wins of independent trials; ties are left out before."""
    count = wins + losses
    tail = sum(math.comb(count, k) for k in range(min(wins, losses) + 1))
    return min(1.0, 2 * tail / (1 << count))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """The p-values adjusted for their number (Holm 1979), under the same names in the same order.

    One below .05 is then below .05 for all of them together.
    """
    ordered = sorted(p_values, key=lambda name: p_values[name])
    adjusted, largest = dict(p_values), 0.0
    for rank, name in enumerate(ordered):
        largest = max(largest, min(1.0, (len(ordered) - rank) * p_values[name]))
        adjusted[name] = largest
    return adjusted


# ── planning ────────────────────────────────────────────────────────────────────────────────────


def smallest_detectable(clusters: Clusters, power: float = POWER) -> float:
    """The true mean that as many clusters would find with this power, two-sided at 5 %.

    NaN for fewer than two clusters.
    """
    if clusters.count < 2:
        return math.nan
    freedom = clusters.count - 1
    factor = t_quantile((1 + CONFIDENCE) / 2, freedom) + t_quantile(power, freedom)
    return factor * clusters.standard_error


@dataclass(frozen=True)
class Spread:
    """Variances of differences: of the prompts' true means, and of the seeds of one prompt."""

    between: float
    within: float

    def of_prompt_means(self, seeds: int) -> float:
        """The standard deviation of a prompt's mean over this many seeds."""
        return math.sqrt(self.between + self.within / seeds)


def spread(differences: ArrayLike, labels: Labels) -> Spread:
    """The parts of the variance, by analysis of variance; `between` is at least 0.

    Raises OptionError for fewer than two clusters, and where no cluster has two values.
    """
    values = np.asarray(differences, np.float64).ravel()
    clusters, squares = Clusters.of(values, labels), Clusters.of(values * values, labels)
    count, total = clusters.count, float(clusters.sizes.sum())
    if count < 2 or total == count:
        raise OptionError(
            f"{count} prompts with {total:g} values",
            reason="prompts and seeds cannot be told apart",
            hint="Give at least two prompts, and two seeds of one.",
        )
    means: Array = clusters.sums / clusters.sizes
    within = float((squares.sums - clusters.sums * means).sum()) / (total - count)
    about = float((clusters.sizes * np.square(means - clusters.mean)).sum()) / (count - 1)
    size = (total - float(np.square(clusters.sizes).sum()) / total) / (count - 1)
    return Spread(max(0.0, (about - within) / size), max(0.0, within))


def prompts_needed(difference: float, deviation: float, power: float = POWER) -> int:
    """How many prompts find this mean difference with this power, two-sided at 5 %.

    `deviation` is the standard deviation of a prompt's mean difference (`Spread.of_prompt_means`).
    By Student's t: normal quantiles ask for two fewer.
    """
    if not (difference and deviation > 0):
        raise OptionError("sample size", reason="the difference and the deviation must not be 0")
    ratio = (deviation / difference) ** 2
    factor = normal_quantile((1 + CONFIDENCE) / 2) + normal_quantile(power)
    count = max(2, math.ceil(factor**2 * ratio))
    while True:
        quantiles = t_quantile((1 + CONFIDENCE) / 2, count - 1) + t_quantile(power, count - 1)
        if quantiles**2 * ratio <= count:
            return count
        count += 1


def choices_needed(preference: float, power: float = POWER) -> int:
    """How many independent choices between two find that B is preferred in this share of them.

    Two-sided at 5 %, by the normal approximation of the binomial.
    """
    if not 0 < preference < 1 or preference == 0.5:
        raise OptionError(
            f"preference {preference:g}", reason="not between 0 and 1, or no preference"
        )
    spread_of_one = math.sqrt(preference * (1 - preference))
    wanted = normal_quantile((1 + CONFIDENCE) / 2) / 2 + normal_quantile(power) * spread_of_one
    return math.ceil((wanted / (preference - 0.5)) ** 2)
