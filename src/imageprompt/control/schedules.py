"""When a reference acts: a window of the denoise loop, and a curve within it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from imageprompt.control.scales import one_scale
from imageprompt.core.errors import OptionError, ScaleError

Curve = str | tuple[float, ...] | Callable[[float], float]


def _smooth(x: float) -> float:
    return x * x * (3 - 2 * x)


CURVES: dict[str, Callable[[float], float]] = {
    "constant": lambda x: 1.0,
    "linear-in": lambda x: x,
    "linear-out": lambda x: 1 - x,
    "ease-in": _smooth,
    "ease-out": lambda x: 1 - _smooth(x),
    "ease-in-out": lambda x: _smooth(1 - abs(2 * x - 1)),
}
"""Factor of the scale as a function of x, the share of the window that has passed (0 <= x < 1);
`ease` is 3x^2 - 2x^3. `in` comes, `out` goes, `in-out` does both: it is whole in the middle."""

_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_WINDOW = re.compile(rf"({_NUMBER})\s*-\s*({_NUMBER})")
_REMEDY = "Write 0-0.4, or 0.1-0.8 ease-out, or numbers for the steps: 1,0.8,0.5,0."


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Step i of n is on where start <= i/n < end; there the scale is multiplied by the curve.

    `curve` is a name of CURVES, numbers 0..2 that are spread evenly over the window (as many as
    steps: one for each), or any callable of x = (i/n - start) / (end - start) that gives 0..2.
    A step is a timestep of the schedule that is actually run: img2img's shortened schedules count
    from their first, and two calls at one timestep are the same step.
    """

    start: float = 0.0
    end: float = 1.0
    curve: Curve = "constant"

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            value = getattr(self, name)
            whole = isinstance(value, int | float) and not isinstance(value, bool)
            if not whole or not 0 <= value <= 1:
                raise OptionError(
                    f"schedule {name} {value!r}", reason="a fraction of the steps, from 0 to 1"
                )
        if self.start >= self.end:
            raise OptionError(
                f"schedule {_short(self.start)}-{_short(self.end)}",
                reason="it ends before it starts",
                hint=_REMEDY,
            )
        self._check_curve()

    def _check_curve(self) -> None:
        if isinstance(self.curve, str):
            if self.curve not in CURVES:
                near = get_close_matches(self.curve, CURVES, n=1)
                hint = f" Did you mean {near[0]}?" if near else ""
                raise OptionError(
                    f"schedule curve {self.curve!r}",
                    reason="no such curve",
                    hint=f"It is one of {', '.join(CURVES)}.{hint}",
                )
        elif isinstance(self.curve, tuple):
            if not self.curve:
                raise OptionError("schedule with an empty list", reason="it holds no number")
            for index, value in enumerate(self.curve):
                one_scale(value, f"schedule[{index}]")
        elif not callable(self.curve):
            raise OptionError(f"schedule curve {self.curve!r}", reason="no such curve")

    @classmethod
    def of(cls, value: object) -> Schedule:
        """Whatever stands for a schedule: itself, a text, numbers or a callable."""
        if isinstance(value, Schedule):
            return value
        if isinstance(value, str):
            return cls.parse(value)
        if isinstance(value, Sequence):
            return cls(curve=(*value,))
        if callable(value):
            return cls(curve=value)
        raise OptionError(f"schedule {value!r}", reason="not a schedule", hint=_REMEDY)

    @classmethod
    def parse(cls, text: str) -> Schedule:
        """`0-0.4`, `0.1-0.8 ease-out`, `ease-in`, `1,0.8,0.5,0`; `str()` is the inverse."""
        rest, window = text.strip(), {}
        match = _WINDOW.match(rest)
        if match:
            window = {"start": float(match[1]), "end": float(match[2])}
            rest = rest[match.end() :].strip()
        elif not rest:
            raise OptionError(f"schedule {text!r}", reason="it is empty", hint=_REMEDY)
        if re.match(r"[\d.]", rest):
            return cls(**window, curve=_numbers(rest, text))
        return cls(**window, curve=rest or "constant")

    def __str__(self) -> str:
        """The text that `parse` reads. Raises OptionError for a callable."""
        if callable(self.curve):
            raise OptionError(
                "a schedule that is a function",
                reason="it cannot be written down",
                hint="Give its numbers instead: [f(i / n) for i in range(n)].",
            )
        window = (
            "" if (self.start, self.end) == (0, 1) else f"{_short(self.start)}-{_short(self.end)}"
        )
        curve = self.curve if isinstance(self.curve, str) else ",".join(map(_short, self.curve))
        if curve == "constant":
            return window or "0-1"
        return f"{window} {curve}".strip()

    @property
    def is_constant(self) -> bool:
        """Is the scale the same at every step?"""
        return (self.start, self.end) == (0, 1) and (
            self.curve == "constant" or (isinstance(self.curve, tuple) and len(self.curve) == 1)
        )

    def factors(self, steps: int) -> tuple[float, ...]:
        """What the scale is multiplied by at each of `steps` steps. Raises ScaleError."""
        return tuple(self._factor(i / steps) for i in range(steps))

    def _factor(self, fraction: float) -> float:
        if not self.start <= fraction < self.end:
            return 0.0
        x = (fraction - self.start) / (self.end - self.start)
        if isinstance(self.curve, tuple):  # a hair's breadth against rounding: .29 * 100 is 28.99..
            index = int(x * len(self.curve) + 1e-9)
            return float(self.curve[min(index, len(self.curve) - 1)])
        if isinstance(self.curve, str):
            return CURVES[self.curve](x)
        return _checked(self.curve(x), x)


def _checked(value: object, x: float) -> float:
    try:
        return one_scale(float(value), f"schedule({x:g})")  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ScaleError(
            f"schedule({x:g}) = {value!r}", reason="a scale is a number from 0 to 2"
        ) from None


def _numbers(text: str, whole: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = (math.nan,)
    if not all(map(math.isfinite, numbers)):
        raise OptionError(f"schedule {whole!r}", reason="not a schedule", hint=_REMEDY)
    return numbers


def _short(value: float) -> str:
    """0.5 -> "0.5", 1.0 -> "1": short, and exact."""
    return repr(int(value)) if value == int(value) else repr(float(value))
