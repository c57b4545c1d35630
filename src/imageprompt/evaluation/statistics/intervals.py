"""95 % intervals of shares, of means over clusters, and of statistics of whole sets.

Everything is deterministic: the same values in the same order give the same interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from imageprompt.core.errors import OptionError

Array = NDArray[np.float64]
Indices = NDArray[np.int64]
Labels = Sequence[Hashable] | NDArray[np.generic]
Method = Literal["studentised", "t", "percentile", "bca"]

RESAMPLES = 2000
CONFIDENCE = 0.95
LEVELS = (0.025, 0.975)
_FEW = 8
"""Fewer clusters have so few different resamples that Student's t is used at once."""
_ALIKE = 0.005
"""The largest share of resamples without an error, a fifth of each tail."""
_BLOCK = 2**21  # resampled clusters in memory at a time


@dataclass(frozen=True)
class Interval:
    """Both ends of an interval; NaN where there are too few clusters for one."""

    low: float
    high: float

    @property
    def known(self) -> bool:
        return math.isfinite(self.low) and math.isfinite(self.high)

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def as_list(self) -> list[float] | None:
        """[low, high] for JSON; None if it is not known."""
        return [self.low, self.high] if self.known else None


UNKNOWN = Interval(math.nan, math.nan)

# ── distributions ───────────────────────────────────────────────────────────────────────────────


def normal_quantile(probability: float) -> float:
    return NormalDist().inv_cdf(probability)


def t_tail(t: float, freedom: int) -> float:
    """Two-sided p-value of Student's t with a whole number of degrees of freedom.

    The finite series of Abramowitz and Stegun, 26.7.3 and 26.7.4.
    """
    if freedom > 2000:  # the error of the normal distribution is below 1e-4 of the quantile
        return 2 * NormalDist().cdf(-abs(t))
    angle = math.atan2(abs(t), math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = (cosine, cosine) if odd else (1.0, 1.0)
    for k in range(2 + odd, freedom - 1, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    if not odd:
        return 1 - sine * total
    return 1 - 2 / math.pi * (angle + (sine * total if freedom > 1 else 0.0))


@lru_cache(maxsize=4096)
def t_quantile(probability: float, freedom: int) -> float:
    """Of Student's t, for a probability from .5 to below 1; found by bisection."""
    low, high = 0.0, 1.0
    while t_tail(high, freedom) > 2 * (1 - probability):
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        if t_tail(middle, freedom) > 2 * (1 - probability):
            low = middle
        else:
            high = middle
    return (low + high) / 2


# ── clusters ────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Clusters:
    """Sums and sizes of the clusters of some values, in the order in which they first appear."""

    sums: Array
    sizes: Array

    @classmethod
    def of(cls, values: ArrayLike, labels: Labels | None = None) -> Clusters:
        """Without labels, each value is a cluster. Raises OptionError for values not finite."""
        numbers = finite(values)
        if labels is None:
            return cls(numbers, np.ones(len(numbers)))
        index = cluster_index(labels, len(numbers))
        sizes = np.bincount(index)
        return cls(_summed(index, numbers), sizes.astype(np.float64))

    @property
    def count(self) -> int:
        return len(self.sums)

    @property
    def mean(self) -> float:
        """Over all values, not over the clusters."""
        return float(self.sums.sum() / self.sizes.sum())

    @property
    def standard_error(self) -> float:
        """Of the mean, robust to likeness within clusters; NaN for fewer than two clusters."""
        if self.count < 2:
            return math.nan
        residuals = self.sums - self.mean * self.sizes
        scale = self.count / (self.count - 1)
        return float(math.sqrt(scale * np.square(residuals).sum()) / self.sizes.sum())


def finite(values: ArrayLike) -> Array:
    """As an array [n]. Raises OptionError if there are none, or if some are not finite."""
    numbers = np.asarray(values, np.float64).ravel()
    if not numbers.size:
        raise OptionError("no values", reason="there is nothing to measure")
    if bad := int((~np.isfinite(numbers)).sum()):
        raise OptionError(
            f"{bad} of {numbers.size} values",
            reason="not finite",
            hint="Leave them out, and say how many they are.",
        )
    return numbers


def cluster_index(labels: Labels, count: int) -> Indices:
    """The number of each value's cluster, [n]. Raises OptionError if not each has a label."""
    if len(labels) != count:
        raise OptionError(f"{count} values", reason=f"there are {len(labels)} cluster labels")
    numbers: dict[Hashable, int] = {}
    plain = labels.tolist() if isinstance(labels, np.ndarray) else labels
    return np.array([numbers.setdefault(label, len(numbers)) for label in plain], np.int64)


def _summed(index: Indices, values: Array) -> Array:
    """The sum of the values of each cluster."""
    return np.bincount(index, values).astype(np.float64)


def draws(count: int, resamples: int = RESAMPLES, seed: int = 0) -> Iterator[Indices]:
    """Indices of bootstrap resamples of `count` units, in blocks [resamples of the block, count].

    However large the blocks, the numbers are the same.
    """
    rng = np.random.default_rng(seed)
    step = max(1, _BLOCK // count)
    for start in range(0, resamples, step):
        yield rng.integers(0, count, (min(step, resamples - start), count))


def resampled_sums(columns: Array, resamples: int = RESAMPLES, seed: int = 0) -> Array:
    """The sums of each column [units, columns] over bootstrap resamples: [resamples, columns]."""
    count = len(columns)
    blocks = []
    for chosen in draws(count, resamples, seed):
        rows = len(chosen)
        chosen += count * np.arange(rows)[:, None]
        times = np.bincount(chosen.ravel(), minlength=rows * count).reshape(rows, count)
        blocks.append(times.astype(np.float64) @ columns)
    return np.concatenate(blocks)


# ── intervals ───────────────────────────────────────────────────────────────────────────────────


def wilson(hits: float, count: float, *, z: float | None = None) -> Interval:
    """Of a share of independent trials (Wilson 1927); `count` may be an effective number."""
    z = normal_quantile((1 + CONFIDENCE) / 2) if z is None else z
    share = hits / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count**2))
    return Interval(max(middle - half, 0.0), min(middle + half, 1.0))


def share_interval(scores: ArrayLike, labels: Labels | None = None) -> Interval:
    """Of the mean of scores from 0 to 1 in clusters: Wilson's, at the effective number of trials.

    That number is how many independent trials would have the standard error of the clusters (Korn
    and Graubard 1998). Where all scores are equal, it is the number of clusters.
    """
    clusters = Clusters.of(scores, labels)
    if clusters.count < 2:
        return UNKNOWN
    share, error = min(max(clusters.mean, 0.0), 1.0), clusters.standard_error
    count = share * (1 - share) / error**2 if error > 1e-12 else float(clusters.count)
    count = min(count, float(clusters.sizes.sum()))
    return wilson(share * count, count, z=t_quantile((1 + CONFIDENCE) / 2, clusters.count - 1))


def mean_interval(
    values: ArrayLike,
    labels: Labels | None = None,
    *,
    method: Method = "studentised",
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Of a mean over clusters, such as prompts; without labels, each value is one.

    "studentised" (bootstrap-t, Efron 1981) and "t" hold their confidence with ten prompts;
    "percentile" and "bca" (Efron 1987) need about fifty. With fewer than _FEW clusters every method
    is "t", and so is "studentised" where most clusters are alike; unknown with fewer than two
    clusters. Raises OptionError for values that are not finite.
    """
    clusters = Clusters.of(values, labels)
    mean, error = clusters.mean, clusters.standard_error
    if clusters.count < 2:
        return UNKNOWN
    if error <= 1e-12 * abs(mean):
        return Interval(mean, mean)
    tail = (1 - confidence) / 2
    pivots = _pivots(clusters, resamples, seed) if method == "studentised" else None
    by_t = method == "t" or (method == "studentised" and pivots is None)
    if by_t or clusters.count < _FEW:
        half = t_quantile(1 - tail, clusters.count - 1) * error
        return Interval(mean - half, mean + half)
    if pivots is not None:
        high, low = np.quantile(pivots, (tail, 1 - tail))
        return Interval(mean - float(low) * error, mean - float(high) * error)
    sums = resampled_sums(np.stack([clusters.sums, clusters.sizes], 1), resamples, seed)
    means = sums[:, 0] / sums[:, 1]
    if method == "bca":
        return percentile_interval(means, _bca_levels(clusters, means, (tail, 1 - tail)))
    return percentile_interval(means, (tail, 1 - tail))


def percentile_interval(samples: Array, levels: tuple[float, float] = LEVELS) -> Interval:
    """Between two quantiles of bootstrap samples."""
    low, high = np.quantile(samples, levels)
    return Interval(float(low), float(high))


def expanded_levels(count: int) -> tuple[float, float]:
    """The quantiles that a percentile interval of few units needs (Hesterberg 2015, section 5.3).

    The bootstrap's spread is too small by sqrt(1 - 1/count), and a normal quantile where it ought
    to be Student's.
    """
    t = t_quantile((1 + CONFIDENCE) / 2, count - 1) * math.sqrt(count / (count - 1))
    tail = NormalDist().cdf(-t)
    return tail, 1 - tail


def _pivots(clusters: Clusters, resamples: int, seed: int) -> Array | None:
    """(mean of a resample - mean) / standard error of the resample.

    None where too many resamples have no error, because most clusters are alike, such as those of
    differences that are mostly 0: their pivots have no bounds.
    """
    sums, sizes = clusters.sums - clusters.mean * clusters.sizes, clusters.sizes
    columns = np.stack([sums, sizes, sums * sums, sums * sizes, sizes * sizes], 1)
    total, size, squares, mixed, sizes2 = resampled_sums(columns, resamples, seed).T
    shift = total / size
    variance = np.maximum(squares - 2 * shift * mixed + shift * shift * sizes2, 0)
    error: Array = np.sqrt(variance * clusters.count / (clusters.count - 1)) / size
    spread = error > 1e-6 * clusters.standard_error  # less is rounding
    if (~spread).mean() > _ALIKE:
        return None
    # a resample of one cluster over and over has no error: its pivot is of no size
    pivots: Array = np.zeros(len(shift))
    np.divide(shift, error, out=pivots, where=spread)
    return pivots


def _bca_levels(
    clusters: Clusters, means: Array, levels: tuple[float, float]
) -> tuple[float, float]:
    """The quantiles of bias-corrected and accelerated intervals."""
    below = ((means < clusters.mean).mean() + (means <= clusters.mean).mean()) / 2
    bias = normal_quantile(min(max(float(below), 1e-9), 1 - 1e-9))
    without = (clusters.sums.sum() - clusters.sums) / (clusters.sizes.sum() - clusters.sizes)
    pulls = without.mean() - without
    acceleration = float((pulls**3).sum() / (6 * (pulls**2).sum() ** 1.5))

    def moved(level: float) -> float:
        z = bias + normal_quantile(level)
        return NormalDist().cdf(bias + z / (1 - acceleration * z))

    return moved(levels[0]), moved(levels[1])


# ── statistics of sets ──────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Jackknife:
    """A statistic of a whole set. `corrected` is without the bias of first order, such as FID's."""

    value: float
    corrected: float
    standard_error: float
    interval: Interval
    groups: int


def jackknife(
    statistic: Callable[[Indices], Mapping[str, float]],
    labels: Labels,
    *,
    groups: int = 20,
    about: Literal["value", "corrected"] = "value",
    seed: int = 0,
) -> dict[str, Jackknife]:
    """Statistics of row indices (FID, KID), by name, leaving out a group of rows at a time.

    Clusters with the same label stay together; they are dealt to at most `groups` groups of about
    the same size. `statistic` is called once more than there are groups. The interval lies around
    the value, or around `corrected`: a FID has a bias, so that the interval around its value holds
    the FID at this number of pictures, not that of infinitely many. Raises OptionError for fewer
    than two clusters.
    """
    index = cluster_index(labels, len(labels))
    sizes = np.bincount(index) if len(index) else np.zeros(0, np.int64)
    if len(sizes) < 2:
        raise OptionError(
            f"{len(sizes)} prompts", reason="an interval needs at least two", hint="Add prompts."
        )
    group = _deal(sizes, min(groups, len(sizes)), seed)[index]
    count = int(group.max()) + 1
    rows = np.arange(len(index))
    whole = statistic(rows)
    parts = [statistic(rows[group != number]) for number in range(count)]
    found = {}
    for name, value in whole.items():
        left_out = np.array([part[name] for part in parts], np.float64)
        squares = float(np.square(left_out - left_out.mean()).sum())
        error = math.sqrt((count - 1) / count * squares)
        corrected = count * value - (count - 1) * float(left_out.mean())
        middle = value if about == "value" else corrected
        half = t_quantile((1 + CONFIDENCE) / 2, count - 1) * error
        interval = Interval(middle - half, middle + half)
        found[name] = Jackknife(float(value), corrected, error, interval, count)
    return found


def _deal(sizes: Indices, groups: int, seed: int) -> Indices:
    """The group of each cluster: the largest first, each to the group with the fewest rows."""
    order = np.random.default_rng(seed).permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    filled, group = np.zeros(groups, np.int64), np.zeros(len(sizes), np.int64)
    for cluster in order:
        group[cluster] = filled.argmin()
        filled[group[cluster]] += sizes[cluster]
    return group
