"""Controls: everything a person can ask about where and when one reference acts; plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, get_args

from imageprompt.control.presets import PRESETS, preset
from imageprompt.control.scales import Scale, Scaling, check_scale, one_scale
from imageprompt.control.schedules import Schedule
from imageprompt.core.errors import OptionError


@dataclass(frozen=True, kw_only=True)
class Controls:
    """Where and when a reference acts, and how strongly. Checked on creation.

    With a `preset`, `scale` is its weight w, a number. `composition` (c of presets that have one)
    and `boost` (b of the precise ones) are w where they are left out. `scaling` says what the
    scale multiplies; `lora` weights the LoRA of FaceID adapters. Raises ScaleError, OptionError.
    """

    scale: Scale = 1.0
    preset: str | None = None
    composition: float | None = None
    boost: float | None = None
    schedule: Schedule | None = None
    scaling: Scaling = "V only"
    lora: float = 1.0

    @classmethod
    def of(cls, whole: Controls | None, **parts: Any) -> Controls:
        """`whole`, or controls of its parts; `schedule` may be anything that stands for one."""
        if whole is None:
            schedule = parts.pop("schedule", None)
            return cls(**parts, schedule=None if schedule is None else Schedule.of(schedule))
        plain = cls()
        given = [name for name, value in parts.items() if value != getattr(plain, name)]
        if not isinstance(whole, cls) or given:
            raise OptionError(
                f"controls= and {', '.join(given)}=" if given else f"controls {whole!r}",
                reason="controls are Controls, and take the place of everything else",
                hint="Give either of them: dataclasses.replace(controls, ...) changes a part.",
            )
        return whole

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """All that can be told without a base."""
        check_scale(self.scale)
        one_scale(self.lora, "lora")
        if self.scaling not in get_args(Scaling):
            raise OptionError(
                f"scaling {self.scaling!r}",
                reason="no such way of scaling",
                hint=f"It is one of: {', '.join(get_args(Scaling))}.",
            )
        if not isinstance(self.schedule, Schedule | None):
            raise OptionError(
                f"schedule {self.schedule!r}",
                reason="Controls take a Schedule",
                hint="Make one with Schedule.of().",
            )
        if self.preset is not None:
            preset(self.preset)
            one_scale(self.scale, f"scale of preset {self.preset!r}")
        for name in ("composition", "boost"):
            self._check_amount(name)

    def _check_amount(self, name: str) -> None:
        value = getattr(self, name)
        if value is None:
            return
        one_scale(value, name)
        if self.preset is None or preset(self.preset).reads != name:
            raise OptionError(
                f"{name} = {value}",
                reason="it belongs to a preset"
                if self.preset is None
                else f"preset {self.preset!r} has no use for it",
                hint=f"Choose a preset that has: {', '.join(readers(name))}.",
            )

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it. Raises OptionError for a schedule that is a function."""
        found = {item.name: getattr(self, item.name) for item in fields(self)}
        return found | {"schedule": None if self.schedule is None else str(self.schedule)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Controls:
        """The inverse of `as_dict`; every value is checked. Raises ScaleError, OptionError."""
        names = {item.name for item in fields(cls)}
        if not isinstance(data, Mapping) or not set(data) <= names:
            raise OptionError("controls", reason=f"an object with some of: {', '.join(names)}")
        schedule = data.get("schedule")
        return cls(**{**data, "schedule": None if schedule is None else Schedule.of(schedule)})


def readers(name: str) -> list[str]:
    """The presets that have a use for `composition` or `boost`."""
    return [each.name for each in PRESETS.values() if each.reads == name]


def sliders(*, style: float = 1.0, content: float = 1.0) -> Controls:
    """Style and content, 0..2 each, as two sliders."""
    return Controls(preset="style and composition", scale=style, composition=content)
