"""Krippendorff's alpha: how far raters agree, beyond chance, on scales of any kind."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from imageprompt.core.errors import OptionError
from imageprompt.evaluation.statistics.intervals import (
    UNKNOWN,
    Array,
    Interval,
    Labels,
    cluster_index,
    percentile_interval,
    resampled_sums,
)

Level = Literal["nominal", "ordinal", "interval"]
MAX_VALUES = 100  # different ratings


@dataclass(frozen=True)
class Agreement:
    """Alpha: 1 is full agreement, 0 what chance gives; NaN if nothing varies or overlaps.

    `items` are those with at least two ratings.
    """

    alpha: float
    interval: Interval
    items: int


def krippendorff(
    ratings: ArrayLike, level: Level = "nominal", labels: Labels | None = None
) -> Agreement:
    """Alpha of ratings [raters, items], NaN where a rater has rated nothing (Krippendorff 2011).

    The interval is the percentiles of bootstrap resamples of the items, or of clusters of items:
    `labels` names the cluster of each. Raises OptionError for more than MAX_VALUES different
    ratings.
    """
    table = np.asarray(ratings, np.float64)
    values = np.unique(table[~np.isnan(table)])
    if len(values) > MAX_VALUES:
        raise OptionError(f"{len(values)} different ratings", reason=f"the limit is {MAX_VALUES}")
    counts = np.stack([(table == value).sum(0) for value in values], 1) if len(values) else None
    if counts is None or not (rated := counts.sum(1) >= 2).any():
        return Agreement(math.nan, UNKNOWN, 0)
    pairs = _coincidences(counts[rated].astype(np.float64))
    index = np.arange(table.shape[1]) if labels is None else cluster_index(labels, table.shape[1])
    groups = np.unique(index[rated], return_inverse=True)[1]
    units = np.zeros((int(groups.max()) + 1, pairs.shape[1]))
    np.add.at(units, groups, pairs)
    alpha = float(_alpha(units.sum(0, keepdims=True), values, level)[0])
    if len(units) < 2 or math.isnan(alpha):
        return Agreement(alpha, UNKNOWN, int(rated.sum()))
    samples = _alpha(resampled_sums(units), values, level)
    known = samples[~np.isnan(samples)]
    return Agreement(alpha, percentile_interval(known), int(rated.sum()))


def _coincidences(counts: Array) -> Array:
    """Pairs of values within each item, over its number of ratings less one: [items, V * V]."""
    pairs = counts[:, :, None] * counts[:, None, :]
    diagonal = np.arange(counts.shape[1])
    pairs[:, diagonal, diagonal] -= counts
    pairs /= (counts.sum(1) - 1)[:, None, None]
    return pairs.reshape(len(counts), -1)


def _alpha(totals: Array, values: Array, level: Level) -> Array:
    """1 - observed / expected disagreement of coincidences [n, V * V]; NaN if nothing varies."""
    observed = totals.reshape(len(totals), len(values), len(values))
    marginals = observed.sum(2)
    distances = _distances(marginals, values, level)
    expected = marginals[:, :, None] * marginals[:, None, :]
    wide = (distances * expected).sum((1, 2)) / (marginals.sum(1) - 1)
    found = (distances * observed).sum((1, 2))
    ratio = np.full(len(found), np.nan)
    np.divide(found, wide, out=ratio, where=wide > 0)
    return 1 - ratio


def _distances(marginals: Array, values: Array, level: Level) -> Array:
    """The squared distances of values, [n or 1, V, V]."""
    if level == "nominal":
        return 1.0 - np.eye(len(values))[None]
    if level == "interval":
        between: Array = values[None, :, None] - values[None, None, :]
        return np.square(between)
    middles = marginals.cumsum(1) - marginals / 2  # ranks between two values, ends counted half
    apart: Array = np.subtract(middles[:, :, None], middles[:, None, :])
    return np.square(apart)
