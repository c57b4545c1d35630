"""How much of what all sites carry one of them carries, with intervals over references."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % interval; both ends are the figure where one unit was measured."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if self.low == self.high:
            return _short(self.value)
        return f"{_short(self.value)} ({_short(self.low)} to {_short(self.high)})"

    def as_dict(self) -> dict[str, float]:
        """For JSON, to four digits."""
        figures = (("value", self.value), ("low", self.low), ("high", self.high))
        return {name: round(figure, 4) for name, figure in figures}


class Bootstrap:
    """Resamples of `count` units (references; seeds where there is one reference), always the same.

    A distance is an array [count]: how far the pictures of a setting are from their references.
    """

    def __init__(self, count: int) -> None:
        rng = np.random.default_rng(0)
        self._chosen = rng.integers(0, count, (RESAMPLES, count))

    def means(self, values: Array) -> Array:
        """[1 + resamples]: the mean, and that of every resample."""
        return np.concatenate([values.mean(keepdims=True), values[self._chosen].mean(1)])

    def gain(self, without: Array, with_: Array) -> Array:
        """By how much the distance falls."""
        return self.means(without) - self.means(with_)

    def share(self, none: Array, every: Array, one: Array) -> Array | None:
        """What `one` gains of what `every` gains over `none`; None where that is not above 0."""
        whole = self.gain(none, every)
        if interval(whole).low <= 0:
            return None
        return self.gain(none, one) / whole


def interval(samples: Array) -> Interval:
    """Of what Bootstrap returns: the first is the figure itself."""
    low, high = np.percentile(samples[1:], (2.5, 97.5))
    return Interval(float(samples[0]), float(low), float(high))


LEAST = 0.2
"""A share below this gives no role, however certain it is."""


def role(style: Array, layout: Array) -> str:
    """What a site is for, by its shares: "style", "layout", "both", "little" or "unclear".

    It has a role where it carries clearly more of one than of the other.
    """
    more = interval(style - layout)
    carries = [interval(share).low > 0 and share[0] >= LEAST for share in (style, layout)]
    if carries[0] and more.low > 0:
        return "style"
    if carries[1] and more.high < 0:
        return "layout"
    return "both" if all(carries) else "unclear" if any(carries) else "little"


def _short(value: float) -> str:
    """ ".97", "-.02", "1.00"."""
    text = f"{value:.2f}"
    return "0" if float(text) == 0 else text.replace("0.", ".", 1) if abs(value) < 0.995 else text
