"""The share of the effect of all sites that one site has, with intervals over references."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from imageprompt.evaluation.statistics.intervals import Array, draws, percentile_interval

MIN_SHARE = 0.2
"""A site with a smaller share gets no role, however certain it is."""


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval; with a single unit, both ends are the value."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if self.low == self.high:
            return _short(self.value)
        return f"{_short(self.value)} ({_short(self.low)} to {_short(self.high)})"

    def as_dict(self) -> dict[str, float]:
        """For JSON, to four decimals."""
        numbers = (("value", self.value), ("low", self.low), ("high", self.high))
        return {name: round(number, 4) for name, number in numbers}


class Bootstrap:
    """The same resamples of `count` units every time.

    Units are references, or the seeds of a single reference. A distance is an array [count]: how
    far the pictures of a setting are from their references.
    """

    def __init__(self, count: int) -> None:
        self._chosen = np.concatenate(list(draws(count)))

    def means(self, values: Array) -> Array:
        """[1 + resamples]: the mean, and the mean of every resample."""
        return np.concatenate([values.mean(keepdims=True), values[self._chosen].mean(1)])

    def gain(self, without: Array, with_: Array) -> Array:
        """By how much the distance falls."""
        return self.means(without) - self.means(with_)

    def share(self, no_sites: Array, all_sites: Array, distances: Array) -> Array | None:
        """The gain of a setting as a share of that of all sites; None if theirs may be 0."""
        whole = self.gain(no_sites, all_sites)
        if interval(whole).low <= 0:
            return None
        return self.gain(no_sites, distances) / whole


def interval(samples: Array) -> Interval:
    """The interval of what Bootstrap returns, whose first number is the value itself."""
    ends = percentile_interval(samples[1:])
    return Interval(float(samples[0]), ends.low, ends.high)


def role(style: Array, layout: Array) -> str:
    """The role of a site by its shares: "style", "layout", "both", "little" or "unclear".

    A site has a role if it carries clearly more of one than of the other.
    """
    difference = interval(style - layout)
    carries = [interval(share).low > 0 and share[0] >= MIN_SHARE for share in (style, layout)]
    if carries[0] and difference.low > 0:
        return "style"
    if carries[1] and difference.high < 0:
        return "layout"
    return "both" if all(carries) else "unclear" if any(carries) else "little"


def _short(value: float) -> str:
    """ ".97", "-.02", "1.00"."""
    text = f"{value:.2f}"
    return "0" if float(text) == 0 else text.replace("0.", ".", 1) if abs(value) < 0.995 else text
