"""Which scale to measure next, so that few are measured: interpolation between those that are."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from imageprompt.core.errors import OptionError
from imageprompt.evaluation.balance import balance

Array = NDArray[np.float64]

STEP = 0.05
SHARE = 0.4
"""The most of an exhaustive sweep's settings that a search measures."""
_START_OF_KNEE = (1.0, 0.25, 0.5, 0.75)
_START_OF_LIMIT = (1.0, 0.5)
"""Measured first, as shares of the range."""


@dataclass(frozen=True)
class Rule:
    """What is best: the knee, or the most likeness where text following is at least `minimum`.

    With `relative`, `minimum` is a share of text following without a reference.
    """

    minimum: float | None = None
    relative: bool = False

    @classmethod
    def of(cls, text: str) -> Rule:
        """`>= 0.9`, `0.9`, or `>= 90%`. Raises OptionError."""
        found = re.fullmatch(r"\s*(?:>=|≥)?\s*(-?\d*\.?\d+)\s*(%?)\s*", text)
        if found is None:
            raise OptionError(
                f"text following {text!r}",
                reason="not a lower limit",
                hint="Write '>= 0.9', or '>= 90%' of text following without a reference.",
            )
        number, percent = float(found[1]), bool(found[2])
        return cls(number / 100 if percent else number, percent)

    def __str__(self) -> str:
        if self.minimum is None:
            return "the knee"
        shown = f"{100 * self.minimum:g} %" if self.relative else f"{self.minimum:g}"
        return f"text following at least {shown}"

    def limit(self, text_alone: float) -> float | None:
        """The least text following that is enough; None for the knee."""
        if self.minimum is None or not self.relative:
            return self.minimum
        return self.minimum * text_alone

    def score(self, likeness: ArrayLike, text: ArrayLike, text_alone: float) -> Array:
        """How good each setting is, [n]; -inf where too little of the text is left.

        Higher is better on both axes. The knee is relative to the settings given.
        """
        likeness, text = np.asarray(likeness, np.float64), np.asarray(text, np.float64)
        limit = self.limit(text_alone)
        if limit is None:
            return balance(likeness, text)
        return np.where(text >= limit - 1e-9, likeness, -np.inf)


def scales_up_to(highest: float, step: float = STEP) -> list[float]:
    """The scales that an exhaustive sweep measures, above 0."""
    return [round(step * number, 4) for number in range(1, round(highest / step) + 1)]


class ScaleSearch:
    """A search over the scales of an exhaustive sweep, with one adapter and preset.

    `found` maps the scales measured so far to (likeness, text), both higher is better; scale 0 is
    text alone, and is known from the start.
    """

    def __init__(self, rule: Rule, scales: Sequence[float], share: float = SHARE) -> None:
        self._rule = rule
        self._scales = np.array([0.0, *scales])
        self._start = _START_OF_KNEE if rule.minimum is None else _START_OF_LIMIT
        most = int(share * len(scales)) - 1  # the control costs something too
        self.budget = max(3, len(self._start), most)

    def next(self, found: Mapping[float, tuple[float, float]]) -> float | None:
        """The scale to measure next; None when there is nothing more to learn, or to spend."""
        known = sorted(self._index(scale) for scale in found)
        last = len(self._scales) - 1
        for share in self._start:
            if (index := round(share * last)) not in known:
                return self._at(index)
        if len(known) - 1 >= self.budget:
            return None
        score = self._rule.score(*self._curves(found, known), found[0.0][1])
        best = int(np.argmax(score[1:])) + 1
        if best not in known:
            return self._at(best)
        return self._beside(best, known, score) if np.isfinite(score[best]) else None

    def best(self, found: Mapping[float, tuple[float, float]]) -> float | None:
        """The best scale above 0 of those measured; None if none leaves enough of the text."""
        scales = sorted(found)
        points = np.array([found[scale] for scale in scales])
        score = self._rule.score(points[:, 0], points[:, 1], found[0.0][1])[1:]
        if not len(score) or not np.isfinite(score).any():
            return None
        return scales[1 + int(np.argmax(score))]

    def _beside(self, best: int, known: Sequence[int], score: Array) -> float | None:
        """A scale in a gap beside the best one, if there is any: the next one with a limit, for
        the knee the middle of the wider gap."""
        below = max((index for index in known if index < best), default=best)
        above = min((index for index in known if index > best), default=best)
        if self._rule.minimum is not None:
            return self._at(best + 1) if above - best > 1 else None
        gaps = {(below + best) // 2: best - below, (best + above + 1) // 2: above - best}
        wide = [index for index, gap in gaps.items() if gap > 1 and index]
        if not wide:
            return None
        return self._at(max(wide, key=lambda index: (gaps[index], score[index])))

    def _curves(
        self, found: Mapping[float, tuple[float, float]], known: Sequence[int]
    ) -> tuple[Array, Array]:
        """Likeness and text at all scales, between the known ones by interpolation."""
        points = np.array([found[self._at(index)] for index in known])
        at = np.arange(len(self._scales))
        return tuple(monotone(np.array(known), column, at) for column in points.T)  # type: ignore[return-value]

    def _at(self, index: int) -> float:
        return float(self._scales[index])

    def _index(self, scale: float) -> int:
        return int(np.argmin(np.abs(self._scales - scale)))


def monotone(x: ArrayLike, y: ArrayLike, at: ArrayLike) -> Array:
    """Cubic interpolation that goes up and down only where the points do (Fritsch and Butland)."""
    x, y, at = (np.asarray(one, np.float64) for one in (x, y, at))
    if len(x) < 3:
        return np.asarray(np.interp(at, x, y))
    width = np.diff(x)
    slope = np.diff(y) / width
    left, right = slope[:-1], slope[1:]
    first, second = 2 * width[1:] + width[:-1], width[1:] + 2 * width[:-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        inner = (first + second) / (first / left + second / right)
    inner = np.where(left * right > 0, inner, 0.0)
    slopes = np.concatenate([slope[:1], inner, slope[-1:]])
    part = np.clip(np.searchsorted(x, at, side="right") - 1, 0, len(x) - 2)
    t = (at - x[part]) / width[part]
    rise = width[part]
    return np.asarray(
        y[part] * (1 + 2 * t) * (1 - t) ** 2
        + y[part + 1] * t**2 * (3 - 2 * t)
        + rise * (slopes[part] * t * (1 - t) ** 2 - slopes[part + 1] * t**2 * (1 - t))
    )
