"""How a cost grows with the area of a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Curve:
    """a + b x + c x² of the area x of a picture in megapixels."""

    a: float
    b: float
    c: float

    @classmethod
    def through(cls, areas: Sequence[float], values: Sequence[float]) -> Curve:
        """Through three points."""
        (x0, x1, x2), (y0, y1, y2) = areas, values
        first, second = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
        c = (second - first) / (x2 - x0)
        b = first - c * (x0 + x1)
        return cls(y0 - b * x0 - c * x0 * x0, b, c)

    def at(self, area: float) -> float:
        return self.a + self.b * area + self.c * area * area

    def as_list(self) -> list[float]:
        return [self.a, self.b, self.c]
