"""What a metric is: how it compares pictures, and all that one needs to read its figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Pixels: TypeAlias = NDArray[np.uint8]
"""One picture, sRGB bytes [h, w, 3]."""
Rows: TypeAlias = NDArray[np.float32]
"""Features, one row for each picture or text: [n, d]."""
Values: TypeAlias = NDArray[np.float64]
"""One value for each picture, [n]; NaN where there is none."""
Matrix: TypeAlias = NDArray[np.float64]

Range: TypeAlias = tuple[float | None, float | None]
"""Lowest and highest value; None where there is no limit."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A figure for pictures. The subclass says what it compares."""

    name: str
    title: str
    """Its name in tables and reports."""
    summary: str
    """What it tells, in one line."""
    formula: str
    source: str
    higher_is_better: bool | None
    """None if neither is better."""
    range: Range
    extractor: str | None = None
    """The role of its feature extractor (see EXTRACTORS); None if it reads pixels alone."""
    min_count: int = 1
    """The fewest pictures that it can be computed for."""
    steady_count: int = 1
    """With fewer, it says so little that a warning goes with it."""
    missing: str = "the metric has no value for it"
    """Why a picture that can be read may have no value."""

    def range_of(self, figure: str) -> Range:
        """Of a figure that it gives: its own name, or that of a part."""
        return self.range


@dataclass(frozen=True, kw_only=True)
class PixelMetric(Metric):
    """Compares the pixels of a picture with those of its reference."""

    compare: Callable[..., float]
    """(picture, reference) -> value, both Pixels; with an extractor, that is the third argument."""
    same_size: bool = True
    min_side: int = 8
    """The fewest pixels on the shorter side."""


@dataclass(frozen=True, kw_only=True)
class FeatureMetric(Metric):
    """Compares the features of each picture with those of its reference."""

    extractor: str
    compare: Callable[[Rows, Rows], Values]
    """(pictures, references) -> values, row by row."""


@dataclass(frozen=True, kw_only=True)
class TextMetric(Metric):
    """Compares the features of each picture with those of its text."""

    extractor: str
    compare: Callable[[Rows, Rows], Values]
    """(pictures, texts) -> values, row by row."""


@dataclass(frozen=True, kw_only=True)
class SetMetric(Metric):
    """One figure for a set of pictures."""

    extractor: str
    measure: Callable[[Rows], float]


@dataclass(frozen=True, kw_only=True)
class TwoSetMetric(Metric):
    """Figures for a set of pictures beside a set of references, which are not paired.

    `measure` takes (pictures, references). One with several figures names them in `parts`, with
    their ranges, and returns them by name; their directions are those of the metric.
    """

    extractor: str
    measure: Callable[[Rows, Rows], float | Mapping[str, float]]
    parts: Mapping[str, Range] = field(default_factory=dict)

    def range_of(self, figure: str) -> Range:
        return self.parts.get(figure, self.range)


def cosine(a: Rows, b: Rows) -> Values:
    """Cosine of the angle between the rows of two arrays [n, d]; NaN for a row of zeros."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore"):
        values: Values = (x * y).sum(1) / np.sqrt((x * x).sum(1) * (y * y).sum(1))
    return values


def unit(rows: Rows) -> Matrix:
    """Rows [n, d] at length 1, in float64."""
    wide = rows.astype(np.float64)
    normalised: Matrix = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    return normalised
