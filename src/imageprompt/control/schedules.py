"""When a reference acts: a window of the denoise loop, and a curve within it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from difflib import get_close_matches

from imageprompt.control.scales import one_scale
from imageprompt.core.errors import OptionError, ScaleError
from imageprompt.core.schema import plain_number

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
"""Factor of the scale as a function of x, the part of the window that has passed (0 <= x < 1).
`ease` is 3x^2 - 2x^3. `in` rises, `out` falls, `in-out` does both and is 1 in the middle."""

_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_WINDOW = re.compile(rf"({_NUMBER})\s*(%?)\s*-\s*({_NUMBER})\s*(%?)")
_HINT = "Write 0-0.4, 0-40%, 0.1-0.8 ease-out, or a number for each step: 1,0.8,0.5,0."


@dataclass(frozen=True, kw_only=True, repr=False)
class Schedule:
    """Step i of n is on where start <= i/n < end; there the scale is multiplied by the curve.

    `curve` is a name of CURVES, numbers 0..2 that are spread evenly over the window (as many as
    steps: one for each), or a function of x = (i/n - start) / (end - start) that returns 0..2.
    Steps are the distinct timesteps of the loop that runs: img2img's shortened schedules count
    from their own first step, and two calls at one timestep are the same step. Raises OptionError,
    ScaleError.
    """

    start: float = 0.0
    end: float = 1.0
    curve: Curve = "constant"

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not 0 <= value <= 1:
                raise OptionError(
                    f"schedule {name} {value!r}",
                    reason="must be a fraction of the steps, from 0 to 1",
                    hint=_HINT,
                )
        if self.start >= self.end:
            raise OptionError(
                f"schedule {_short(self.start)}-{_short(self.end)}",
                reason="ends before it starts",
                hint=_HINT,
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
                    hint=f"Use one of {', '.join(CURVES)}.{hint}",
                )
        elif isinstance(self.curve, tuple):
            if not self.curve:
                raise OptionError("schedule", reason="the list of numbers is empty", hint=_HINT)
            for index, value in enumerate(self.curve):
                one_scale(value, f"schedule[{index}]")
        elif not callable(self.curve):
            raise OptionError(f"schedule curve {self.curve!r}", reason="no such curve")

    @classmethod
    def of(cls, value: object) -> Schedule:
        """A schedule from a Schedule, a string (see `parse`), numbers or a function."""
        if isinstance(value, Schedule):
            return value
        if isinstance(value, str):
            return cls.parse(value)
        if hasattr(value, "tolist"):  # an array or a tensor
            value = value.tolist()
        if isinstance(value, Sequence):
            return cls(curve=tuple(map(plain_number, value)))
        if callable(value):
            return cls(curve=value)
        raise OptionError(f"schedule {value!r}", reason="not a schedule", hint=_HINT)

    @classmethod
    def parse(cls, text: str) -> Schedule:
        """`0-0.4`, `0-40%`, `0.1-0.8 ease-out`, `ease-in`, `1,0.8,0.5,0`; the inverse of `str()`.

        A percent sign at the end of a window applies to both of its numbers.
        """
        rest, window = text.strip(), {}
        match = _WINDOW.match(rest)
        if match:
            start, start_sign, end, end_sign = match.groups()
            if end_sign and not start_sign and 0 < float(start) < 1:
                raise OptionError(
                    f"schedule {text!r}",
                    reason=f"{start} may be a fraction or a percentage",
                    hint="Write both numbers as fractions or both with %.",
                )
            window = {
                "start": _fraction(start, percent=bool(start_sign or end_sign)),
                "end": _fraction(end, percent=bool(end_sign)),
            }
            rest = rest[match.end() :].strip()
        elif not rest:
            raise OptionError(f"schedule {text!r}", reason="empty", hint=_HINT)
        if re.match(r"[\d.]", rest):
            return cls(**window, curve=_numbers(rest, text))
        return cls(**window, curve=rest or "constant")

    def __str__(self) -> str:
        """The text that `parse` reads. Raises OptionError for a function."""
        if callable(self.curve):
            raise OptionError(
                "a schedule that is a function",
                reason="cannot be written as text",
                hint="Give its numbers instead: [f(i / n) for i in range(n)].",
            )
        curve = self.curve if isinstance(self.curve, str) else ",".join(map(_short, self.curve))
        return self._with_window("" if curve == "constant" else curve)

    def __repr__(self) -> str:
        if callable(self.curve):
            name = getattr(self.curve, "__name__", type(self.curve).__name__)
            return f"Schedule({self._with_window(f'function {name}')!r})"
        return f"Schedule({str(self)!r})"

    def _with_window(self, curve: str) -> str:
        whole = (self.start, self.end) == (0, 1)
        window = "" if whole and curve else f"{_short(self.start)}-{_short(self.end)}"
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
        if isinstance(self.curve, tuple):
            index = int(x * len(self.curve) + 1e-9)  # against rounding: .29 * 100 is 28.99..
            return float(self.curve[min(index, len(self.curve) - 1)])
        if isinstance(self.curve, str):
            return CURVES[self.curve](x)
        return _check_result(self.curve(x), x)


def _check_result(value: object, x: float) -> float:
    try:
        return one_scale(float(value), f"schedule({x:g})")  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ScaleError(
            f"schedule({x:g}) = {value!r}", reason="a scale is a number from 0 to 2"
        ) from None


def _fraction(number: str, *, percent: bool) -> float:
    """The number, or a hundredth of it: exactly what the fraction itself would parse to."""
    if not percent:
        return float(number)
    try:
        return float(Decimal(number) / 100)
    except ArithmeticError:  # an exponent beyond all bounds
        return math.inf


def _numbers(text: str, whole: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = (math.nan,)
    if not all(map(math.isfinite, numbers)):
        raise OptionError(f"schedule {whole!r}", reason="not a schedule", hint=_HINT)
    return numbers


def _short(value: float) -> str:
    """0.5 -> "0.5", 1.0 -> "1": short, and exact."""
    return repr(int(value)) if value == int(value) else repr(float(value))
