"""Numbers as a page shows them: short figures, and bars of intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from imageprompt.evaluation.statistics.intervals import Interval


def figure(value: float | None) -> str:
    """Three digits: 0.842, 23.1, 1,204; a dash for none."""
    if value is None or not math.isfinite(value):
        return "–"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    digits = 3 if abs(value) < 1 else max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{digits}f}"
    return text.replace("-", "−" if float(text) else "")


def signed(value: float | None) -> str:
    """The same with its sign."""
    text = figure(value)
    plus = value is not None and value > 0 and text.strip("0.") not in ("", "–")
    return f"+{text}" if plus else text


@dataclass(frozen=True)
class Span:
    """The range that the bars of a column share."""

    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Span:
        known = [value for value in values if math.isfinite(value)]
        low, high = (min(known), max(known)) if known else (0.0, 1.0)
        return cls(low, high) if high > low else cls(low - 0.5, high + 0.5)

    def place(self, value: float) -> float:
        """In per cent of the width."""
        return round(100 * min(max((value - self.low) / (self.high - self.low), 0.0), 1.0), 1)


@dataclass(frozen=True)
class Bar:
    """Places in per cent; None where there is none."""

    value: float | None
    start: float | None
    width: float | None
    zero: float | None = None


def bar(value: float | None, interval: Interval, span: Span, *, zero: bool = False) -> Bar:
    """The bar of a value in the range of its column."""
    known = interval.known
    start, end = (span.place(interval.low), span.place(interval.high)) if known else (0.0, 0.0)
    has_value = value is not None and math.isfinite(value)
    return Bar(
        span.place(float(value)) if has_value and value is not None else None,
        start if known else None,
        round(end - start, 1) if known else None,
        span.place(0.0) if zero else None,
    )
