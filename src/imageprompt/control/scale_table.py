"""The table of numbers that controls compile to before anything is sampled: scale[step][site]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from imageprompt.control.controls import Controls
from imageprompt.control.scales import SiteScale, one_scale, site_scales
from imageprompt.core.spec import Site

PENALTY_WIDTH = 1280.0
"""The width of a site at which ComfyUI's "C penalty" is 1."""


@dataclass(frozen=True)
class ScaleTable:
    """What every site is multiplied by at every step.

    `values[step][site]` are the numbers. `included[site]` is False where the controls leave the
    site out: it is 0 at every step. `on_negative[site]` is True where the negative rows of guidance
    are shown the reference instead of the positive ones.
    """

    values: tuple[tuple[float, ...], ...]
    included: tuple[bool, ...]
    on_negative: tuple[bool, ...]


def compile_scales(controls: Controls, sites: Sequence[Site], steps: int) -> ScaleTable:
    """Compile controls for the sites of a base and a loop of `steps` steps.

    Raises ScaleError for a site that does not exist, OptionError for a preset without sites on
    this base.
    """
    requested = requested_scales(controls, sites)
    scales = [0.0 if one is None else one.scale for one in requested]
    factors = (1.0,) * steps if controls.schedule is None else controls.schedule.factors(steps)
    return ScaleTable(
        values=tuple(tuple(scale * factor for scale in scales) for factor in factors),
        included=tuple(one is not None for one in requested),
        on_negative=tuple(one is not None and one.on_negative for one in requested),
    )


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
