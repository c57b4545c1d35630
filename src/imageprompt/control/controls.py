"""Controls: where and when one reference acts, and the table of numbers they compile to.

The table, scale[step][site], is made before anything is sampled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, get_args

from imageprompt.control.scales import (
    DEFAULT_SCALE,
    Scale,
    Scaling,
    SiteScale,
    check_scale,
    one_scale,
    site_scales,
)
from imageprompt.control.schedules import Schedule
from imageprompt.core.errors import OptionError
from imageprompt.core.schema import plain_numbers
from imageprompt.core.spec import Site

PENALTY_WIDTH = 1280.0
"""The width of a site at which ComfyUI's "C penalty" is 1."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Controls:
    """Where and when a reference acts, and how strongly; checked on creation.

    scale: a number 0..2, or numbers by site (see `Scale`). With a preset, its weight w: a number.
    preset: a name of `control.presets.PRESETS`, in any spelling ("Style Transfer").
    composition, boost: further weights of some presets, 0..2; None stands for the scale.
    schedule: when the reference acts; None is always.
    scaling: what the scale multiplies (see `Scaling`).
    lora: the strength of the LoRA of FaceID adapters, 0..2.
    negative_scale: the scale on the negative side of guidance at every site where the reference
    acts, 0..2; None is the scale there. Only with the scaling "V only".

    Raises ScaleError, OptionError.
    """

    scale: Scale = DEFAULT_SCALE
    preset: str | None = None
    composition: float | None = None
    boost: float | None = None
    schedule: Schedule | None = None
    scaling: Scaling = "V only"
    lora: float = 1.0
    negative_scale: float | None = None

    @classmethod
    def of(cls, controls: Controls | None, **parts: Any) -> Controls:
        """`controls`, or new ones from their parts; `schedule` is anything `Schedule.of` takes.

        Raises OptionError where both are given.
        """
        if controls is None:
            schedule = parts.pop("schedule", None)
            return cls(**parts, schedule=None if schedule is None else Schedule.of(schedule))
        default = cls()
        parts = {name: plain_numbers(value) for name, value in parts.items()}
        changed = [name for name, value in parts.items() if value != getattr(default, name)]
        if not isinstance(controls, cls) or changed:
            raise OptionError(
                f"controls= and {', '.join(changed)}=" if changed else f"controls {controls!r}",
                reason="controls= takes Controls, which replace all other arguments",
                hint="Give one or the other; dataclasses.replace(controls, ...) changes a part.",
            )
        return controls

    def __post_init__(self) -> None:
        """Check everything that can be checked without a base; a preset gets its own spelling."""
        for name in ("scale", "composition", "boost", "lora", "negative_scale"):
            object.__setattr__(self, name, plain_numbers(getattr(self, name)))
        check_scale(self.scale)
        one_scale(self.lora, "lora")
        if self.scaling not in get_args(Scaling):
            raise OptionError(
                f"scaling {self.scaling!r}",
                reason="no such scaling",
                hint=f"Use one of: {', '.join(get_args(Scaling))}.",
            )
        if self.negative_scale is not None:
            one_scale(self.negative_scale, "negative_scale")
            if self.scaling != "V only":
                raise OptionError(
                    f"negative_scale with scaling {self.scaling!r}",
                    reason="K' would need a scale for each row",
                    hint="Leave the scaling at 'V only'.",
                )
        if not isinstance(self.schedule, Schedule | None):
            raise OptionError(
                f"schedule {self.schedule!r}",
                reason="Controls take a Schedule",
                hint="Make one with Schedule.of().",
            )
        if self.preset is not None:
            from imageprompt.control.presets import find_preset

            object.__setattr__(self, "preset", find_preset(self.preset).name)
            one_scale(self.scale, f"scale of preset {self.preset!r}")
        for name in ("composition", "boost"):
            self._check_extra(name)

    def _check_extra(self, name: str) -> None:
        value = getattr(self, name)
        if value is None:
            return
        from imageprompt.control.presets import PRESETS

        one_scale(value, name)
        if self.preset is None or PRESETS[self.preset].reads != name:
            preset = "no preset is given" if self.preset is None else f"not used by {self.preset!r}"
            users = ", ".join(each.name for each in PRESETS.values() if each.reads == name)
            raise OptionError(
                f"{name} = {value}", reason=preset, hint=f"Choose a preset that uses it: {users}."
            )

    def __repr__(self) -> str:
        """Only what differs from the defaults; the scale always."""
        shown = {
            item.name: getattr(self, item.name)
            for item in fields(self)
            if item.name == "scale" or getattr(self, item.name) != item.default
        }
        return f"Controls({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, every field. Raises OptionError for a schedule with a function."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return values | {"schedule": None if self.schedule is None else str(self.schedule)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Controls:
        """The inverse of `as_dict`; every value is checked. Raises ScaleError, OptionError."""
        names = [item.name for item in fields(cls)]
        if not isinstance(data, Mapping) or not set(data) <= set(names):
            raise OptionError("controls", reason=f"must be an object with keys {', '.join(names)}")
        schedule = data.get("schedule")
        return cls(**{**data, "schedule": None if schedule is None else Schedule.of(schedule)})


def sliders(*, style: float = DEFAULT_SCALE, content: float = DEFAULT_SCALE) -> Controls:
    """Style and content as two sliders, 0..2 each. Raises ScaleError."""
    return Controls(preset="style and composition", scale=style, composition=content)


# ── the table ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class ScaleTable:
    """What every site is multiplied by at every step.

    `values[step][site]` are the numbers. `included[site]` is False where the controls leave the
    site out: it is 0 at every step. `on_negative[site]` is True where the negative rows of guidance
    are shown the reference instead of the positive ones. `negative[step][site]` are the numbers of
    negative rows, None where they are the same.
    """

    values: tuple[tuple[float, ...], ...]
    included: tuple[bool, ...]
    on_negative: tuple[bool, ...]
    negative: tuple[tuple[float, ...], ...] | None = None


def compile_scales(controls: Controls, sites: Sequence[Site], steps: int) -> ScaleTable:
    """Compile controls for the sites of a base and a loop of `steps` steps.

    Raises ScaleError for a site that does not exist, OptionError for a preset without sites on
    this base.
    """
    requested = requested_scales(controls, sites)
    scales = [0.0 if one is None else one.scale for one in requested]
    factors = (1.0,) * steps if controls.schedule is None else controls.schedule.factors(steps)
    on_negative = tuple(one is not None and one.on_negative for one in requested)
    negative = None
    if controls.negative_scale is not None:
        own = [
            controls.negative_scale if scale and not shown else scale
            for scale, shown in zip(scales, on_negative, strict=True)
        ]
        negative = _by_step(own, factors)
    return ScaleTable(
        values=_by_step(scales, factors),
        included=tuple(one is not None for one in requested),
        on_negative=on_negative,
        negative=negative,
    )


def _by_step(scales: Sequence[float], factors: Sequence[float]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(scale * factor for scale in scales) for factor in factors)


def requested_scales(controls: Controls, sites: Sequence[Site]) -> tuple[SiteScale | None, ...]:
    """The scale of every site where the schedule is 1; None for a site that is left out."""
    if controls.preset is None:
        scales = site_scales(controls.scale, sites)
        return tuple(None if scale is None else SiteScale(scale) for scale in scales)
    from imageprompt.control.presets import PresetWeights, preset_scales

    w = one_scale(controls.scale, "scale")
    c = w if controls.composition is None else controls.composition
    b = w if controls.boost is None else controls.boost
    return preset_scales(controls.preset, PresetWeights(w, c, b), sites)


def penalties(controls: Controls, sites: Sequence[Site]) -> tuple[float, ...]:
    """What the scale of every site is multiplied by: width / 1280 with a C penalty, else 1."""
    penalised = controls.scaling.endswith("w/ C penalty")
    return tuple(site.inner_dim / PENALTY_WIDTH if penalised else 1.0 for site in sites)
