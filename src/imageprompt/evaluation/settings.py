"""The settings of a study: its rows by adapter and scale, and the mean of each metric with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from imageprompt.core.hub import PARTS
from imageprompt.evaluation.balance import FEWEST, Axes, balance, oriented, pareto, range_of
from imageprompt.evaluation.statistics.intervals import (
    UNKNOWN,
    Interval,
    mean_interval,
    share_interval,
)
from imageprompt.evaluation.study.results import ADAPTER, CEILING, CONTROL, Results

TITLES = {CONTROL: "text alone", CEILING: "ceiling"}


@dataclass(frozen=True)
class Mean:
    """A metric over the pictures of a setting; None where no picture has a finite value."""

    value: float | None
    interval: Interval
    n: int
    missing: int = 0
    """Pictures without a finite value, which are not part of the mean."""

    def as_dict(self) -> dict[str, Any]:
        """As plain data for JSON."""
        lost = {"missing": self.missing} if self.missing else {}
        return {"value": self.value, "interval": self.interval.as_list(), "n": self.n, **lost}


@dataclass(frozen=True)
class Setting:
    """An adapter at a scale, or a control or ceiling row: its lines and its means."""

    row: str
    adapter: str | None
    scale: float | None
    lines: Results
    means: Mapping[str, Mean]

    @property
    def name(self) -> str:
        if self.row == ADAPTER:
            return f"{self.adapter}, scale {self.scale:g}"
        return TITLES[self.row]

    @property
    def part(self) -> str | None:
        """Of a pair of adapters: the one whose reference its lines have."""
        return part_of_pair(self.lines, self.adapter)

    @property
    def pictures(self) -> int:
        """Different ones: a control picture has a line for each reference."""
        return len(self.lines.picture.distinct())

    def value(self, metric: str) -> float:
        """The mean; NaN if there is none."""
        mean = self.means.get(metric)
        return np.nan if mean is None or mean.value is None else mean.value


def part_of_pair(results: Results, adapter: str | None) -> str | None:
    """Content or style for an adapter of a pair; else None."""
    adapters = results.study.get("adapters")
    for one in adapters if isinstance(adapters, list) else ():
        if isinstance(one, dict) and one.get("name") == adapter and one.get("part") in PARTS:
            return str(one["part"])
    return None


def settings_of(results: Results) -> list[Setting]:
    """The control first, then each adapter by scale, then the ceiling."""
    _, clusters = results.clusters()
    return [
        Setting(row, adapter, scale, part, _means(part, clusters[chosen]))
        for row, adapter, scale, chosen in _groups(results)
        for part in (results.take(chosen),)
    ]


def _groups(results: Results) -> Iterator[tuple[str, str | None, float | None, Any]]:
    control, ceiling = (results.row.equal(row) for row in (CONTROL, CEILING))
    if control.any():
        yield CONTROL, None, 0.0, np.flatnonzero(control)
    of_adapters = results.row.equal(ADAPTER)
    for adapter in results.adapter.distinct():
        own = of_adapters & results.adapter.equal(adapter)
        for scale in np.unique(results.scale[own & np.isfinite(results.scale)]):
            yield ADAPTER, adapter, float(scale), np.flatnonzero(own & (results.scale == scale))
    if ceiling.any():
        yield CEILING, None, None, np.flatnonzero(ceiling)


def _means(part: Results, clusters: Any) -> dict[str, Mean]:
    return {
        name: mean_of(values, clusters, *range_of(name)) for name, values in part.metrics.items()
    }


def mean_of(
    values: Any, clusters: Any, low: float | None = None, high: float | None = None
) -> Mean:
    """Over the finite values, with an interval over clusters: both [n].

    The interval ends at the lowest and the highest value that there can be. Shares that are all
    0 or all 1 have Wilson's, since resamples of them tell nothing.
    """
    finite = np.isfinite(values)
    count, missing = int(finite.sum()), int((~finite).sum())
    if not count:
        return Mean(None, UNKNOWN, 0, missing)
    kept = values[finite]
    ends = mean_interval(kept, clusters[finite])
    if ends.known and (low, high) == (0, 1) and kept.min() == kept.max() in (0, 1):
        ends = share_interval(kept, clusters[finite])
    if ends.known:
        ends = Interval(
            ends.low if low is None else max(ends.low, low),
            ends.high if high is None else min(ends.high, high),
        )
    return Mean(float(kept.mean()), ends, count, missing)


@dataclass(frozen=True)
class Front:
    """Which settings are on the Pareto front, and the knee of each adapter, by index."""

    axes: Axes
    on_front: tuple[bool, ...]
    knees: Mapping[str, int]

    @classmethod
    def of(cls, settings: list[Setting], axes: Axes) -> Front:
        """Of the settings with a place on both axes; ceilings and halves of a pair have none."""
        points = [
            [np.nan] * 2
            if one.row == CEILING or one.part
            else [one.value(axes.likeness), one.value(axes.text)]
            for one in settings
        ]
        likeness, text = np.array(points).reshape(-1, 2).T
        likeness, text = oriented(axes.likeness, likeness), oriented(axes.text, text)
        known = np.isfinite(likeness) & np.isfinite(text)
        on_front = np.zeros(len(settings), bool)
        on_front[known] = pareto(likeness[known], text[known])
        knees: dict[str, int] = {}
        if known.any():
            score = balance(likeness, text)
            for adapter in dict.fromkeys(one.adapter for one in settings if one.adapter):
                own = [i for i, one in enumerate(settings) if one.adapter == adapter and known[i]]
                if len(own) + bool(settings[0].row == CONTROL and known[0]) >= FEWEST:
                    knees[adapter] = max(own, key=lambda i: (score[i], -i))
        return cls(axes, tuple(on_front.tolist()), knees)
