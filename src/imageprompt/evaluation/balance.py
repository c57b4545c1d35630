"""Likeness to the reference against following the text: both axes, Pareto front and knee."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from imageprompt.core.errors import OptionError
from imageprompt.evaluation.phrases import known_ones

if TYPE_CHECKING:
    from imageprompt.evaluation.metrics import Metric

Array = NDArray[np.float64]

LIKENESS = ("attributes", "dino", "csd", "face", "clip-i", "lab")
"""Metrics of likeness, the preferred first: CLIP-I last, since many adapters read a CLIP's eyes."""
TEXT = ("words", "clip-t")
"""Metrics of following the text, the preferred first."""
FEWEST = 3
"""A curve of fewer points has no knee."""


@dataclass(frozen=True)
class Axes:
    """The metric of each axis."""

    likeness: str
    text: str

    @classmethod
    def of(
        cls, known: Iterable[str], likeness: str | None = None, text: str | None = None
    ) -> Axes | None:
        """The axes named, or the preferred ones of those that are known; None if one is missing.

        Raises OptionError for a name that is not known.
        """
        names = [*known]
        found = _chosen(names, likeness, LIKENESS), _chosen(names, text, TEXT)
        return None if None in found else cls(*map(str, found))


def _chosen(known: Collection[str], given: str | None, preferred: Iterable[str]) -> str | None:
    if given is None:
        return next((name for name in preferred if name in known), None)
    if given not in known:
        raise OptionError(
            f"metric {given}",
            reason="not in this study",
            hint=known_ones(given, known),
        )
    return given


def metric_of(name: str) -> Metric | None:
    """The metric of that name, or the one that has it as a part; None if it is not known."""
    from imageprompt.evaluation.metrics import METRICS

    found = METRICS.get(name)
    if found is not None:
        return found
    return next((one for one in METRICS if name in getattr(one, "parts", ())), None)


def title_of(metric: str) -> str:
    """What tables and pages call a metric."""
    found = metric_of(metric)
    return found.title if found is not None and found.name == metric else metric


def higher_is_better(metric: str) -> bool | None:
    """The direction of a metric; None for one without, or that is not known."""
    found = metric_of(metric)
    return None if found is None else found.higher_is_better


def range_of(metric: str) -> tuple[float | None, float | None]:
    """Lowest and highest value of a metric; None where there is no limit, or it is not known."""
    found = metric_of(metric)
    return (None, None) if found is None else found.range_of(metric)


def oriented(metric: str, values: ArrayLike) -> Array:
    """Values so that higher is better."""
    sign = -1.0 if higher_is_better(metric) is False else 1.0
    return sign * np.asarray(values, np.float64)


def pareto(likeness: ArrayLike, text: ArrayLike) -> NDArray[np.bool_]:
    """Which settings no other one beats on both axes, [n]; higher is better on either."""
    points = np.stack([np.asarray(likeness, np.float64), np.asarray(text, np.float64)], 1)
    as_good = np.all(points[None] >= points[:, None], axis=2)
    better = np.any(points[None] > points[:, None], axis=2)
    beaten = np.any(as_good & better, axis=1)
    return np.asarray(~beaten & np.isfinite(points).all(axis=1))


def balance(likeness: ArrayLike, text: ArrayLike) -> Array:
    """How good each setting is on both axes together, [n]: the knee is where it is largest.

    The sum of the shares of the way from the worst to the best value that each axis has. On a curve
    whose ends are the best of either axis, it is the distance from the line between the ends.
    """
    return _share(np.asarray(likeness, np.float64)) + _share(np.asarray(text, np.float64))


def _share(values: Array) -> Array:
    low, high = np.nanmin(values), np.nanmax(values)
    return (values - low) / (high - low) if high > low else np.zeros_like(values)
