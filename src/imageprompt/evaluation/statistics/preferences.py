"""Strengths from choices between two (Bradley and Terry 1952), with intervals over prompts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from imageprompt.core.errors import OptionError
from imageprompt.evaluation.statistics.intervals import (
    UNKNOWN,
    Array,
    Interval,
    expanded_levels,
    percentile_interval,
    resampled_sums,
)

PRIOR = 0.5
"""Wins of each over each other that are added where strengths would be infinite."""
_STEPS = 100
_LONGEST = 1.0  # of a Newton step, in log-odds
_CLOSE = 1e-12


@dataclass(frozen=True)
class Strengths:
    """Log-odds of winning, centred on 0, [k]. `prior` is what was added to the wins, or 0.

    `resamples_with_prior` is the share of bootstrap resamples that needed the prior.
    """

    values: Array
    intervals: list[Interval]
    prior: float
    resamples_with_prior: float = 0.0

    def elo(self) -> Array:
        """The same in points: 400 points are odds of ten to one."""
        return to_elo(self.values)

    def preference(self, first: int, second: int) -> float:
        """How often the first is preferred to the second, by the model."""
        return float(1 / (1 + math.exp(self.values[second] - self.values[first])))


def to_elo(strengths: Array) -> Array:
    return strengths * (400 / math.log(10))


def bradley_terry(wins: ArrayLike) -> Strengths:
    """Strengths from a matrix [k, k] of how often the row was preferred to the column.

    A tie is half a win of each. If some have no path of wins to all others, no finite strengths
    are the likeliest: PRIOR is added, and said. Raises OptionError for a matrix that is not one.
    """
    table = np.asarray(wins, np.float64)
    if table.ndim != 2 or table.shape[0] != table.shape[1] or len(table) < 2:
        raise OptionError(f"wins of shape {list(table.shape)}", reason="not [k, k] with k > 1")
    values, with_prior = _fit(table[None])
    return Strengths(values[0], [UNKNOWN] * len(table), PRIOR if with_prior[0] else 0.0)


def bradley_terry_over_prompts(wins: ArrayLike) -> Strengths:
    """The same from the wins of each prompt, [prompts, k, k]; intervals by resampling prompts.

    The percentiles are those that few prompts need. Intervals are unknown for fewer than two.
    """
    tables = np.asarray(wins, np.float64)
    prompts, count = tables.shape[:2]
    whole = bradley_terry(tables.sum(0))
    if prompts < 2:
        return whole
    totals = resampled_sums(tables.reshape(prompts, -1)).reshape(-1, count, count)
    samples, with_prior = _fit(totals)
    levels = expanded_levels(prompts)
    intervals = [percentile_interval(column, levels) for column in samples.T]
    return Strengths(whole.values, intervals, whole.prior, float(with_prior.mean()))


def _fit(wins: Array) -> tuple[Array, NDArray[np.bool_]]:
    """The likeliest strengths of each matrix, [n, k], and which of them needed the prior."""
    count = wins.shape[1]
    wins = wins * (1 - np.eye(count))
    lacking = ~_all_reach_all(wins)
    wins = wins + lacking[:, None, None] * PRIOR * (1 - np.eye(count))
    games, won = wins + wins.transpose(0, 2, 1), wins.sum(2)
    strengths = np.zeros(wins.shape[:2])
    for _ in range(_STEPS):
        chance = 1 / (1 + np.exp(strengths[:, None, :] - strengths[:, :, None]))
        gradient = won - (games * chance).sum(2)
        weights = games * chance * (1 - chance)
        curvature = -weights
        diagonal = np.arange(count)
        curvature[:, diagonal, diagonal] += weights.sum(2)
        curvature += 1 / count  # strengths are free up to a constant: keep them centred
        step = np.linalg.solve(curvature, gradient[:, :, None])[:, :, 0]
        longest = np.abs(step).max(1, keepdims=True)
        strengths += step * np.minimum(1, _LONGEST / np.maximum(longest, _LONGEST))
        if longest.max() < _CLOSE:
            break
    return strengths - strengths.mean(1, keepdims=True), lacking


def _all_reach_all(wins: Array) -> NDArray[np.bool_]:
    """Is there a path of wins from each to each, in each matrix?"""
    reach: NDArray[np.bool_] = np.logical_or(wins > 0, np.eye(wins.shape[1], dtype=bool))
    for _ in range(max(1, math.ceil(math.log2(wins.shape[1])))):
        steps = reach.astype(np.float32)
        reach = (steps @ steps).astype(np.bool_)
    return np.asarray(reach.reshape(len(wins), -1).all(1), np.bool_)
