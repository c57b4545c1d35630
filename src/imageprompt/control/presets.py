"""What to take from a reference, by name: the presets of ComfyUI, and the roles of InstantStyle.

A preset gives every site a share of w (the scale), c (the composition) or b (the boost). A site may
also show the reference to the negative rows of guidance instead of the positive ones. The formulas
are those of ComfyUI_IPAdapter_plus 9d076a3 (`IPAdapterPlus.py`, `CrossAttentionPatch.py`),
operation for operation, so that the numbers agree to the last digit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from imageprompt.control.scales import SiteScale
from imageprompt.core.errors import OptionError
from imageprompt.core.spec import Site

Part = Literal["style", "layout", "rest"]


@dataclass(frozen=True)
class PresetWeights:
    """w, c and b of a preset; c and b are w where the user gave none."""

    w: float
    c: float
    b: float


@dataclass(frozen=True)
class SitePosition:
    """Where a site is: transformer t of `total` in sampling order, its stage and its part."""

    t: int
    total: int
    stage: str
    part: Part
    share: float = 1.0
    """Factor of the layout's weight at this site: 0.25 at transformer t = 4 of SD1.5, else 1."""


Rule = Callable[[SitePosition, PresetWeights], SiteScale | None]
"""The scale of a site; None where it is left out."""


@dataclass(frozen=True)
class Preset:
    """A rule with a name."""

    name: str
    summary: str
    rule: Rule
    by_role: bool = False
    """Parts are the roles of the host (InstantStyle), not ComfyUI's sets of transformers."""
    reads: str = ""
    """The further weight that it uses: "composition", "boost" or none."""


def _curve(factor: Callable[[SitePosition], float]) -> Rule:
    return lambda position, weights: SiteScale(weights.w * factor(position))


def _weak(*stages: str) -> Rule:
    return _curve(lambda position: 0.2 if position.stage in stages else 1.0)


def _by_part(
    style: str = "", layout: str = "", rest: str = "", *, on_negative: tuple[Part, ...] = ()
) -> Rule:
    """The weight of each part: "w", "c" or "b"; ".1b" is a tenth of b; "" leaves the part out."""

    def rule(position: SitePosition, weights: PresetWeights) -> SiteScale | None:
        name = {"style": style, "layout": layout, "rest": rest}[position.part]
        if not name:
            return None
        weight: float = getattr(weights, name[-1])
        if name.startswith(".1"):
            weight = weight * 0.1
        # ComfyUI applies the layout's shares only where the rest does not get the full weight
        share = 1.0 if rest == "w" else position.share
        return SiteScale(weight * share, on_negative=position.part in on_negative)

    return rule


def _progress(position: SitePosition) -> float:
    """Place in sampling order, 0 for the first transformer."""
    return position.t / position.total


def _off_centre(position: SitePosition) -> float:
    """Distance from the middle of the network: 1 at its start, 0 in its middle."""
    return abs(position.t - (position.total / 2)) / (position.total / 2)


def _linear(of: Callable[[SitePosition], float], *, rising: bool) -> Rule:
    """From 0.05 to 1 with `of`, or the reverse."""
    if rising:
        return _curve(lambda position: 0.05 + 0.95 * of(position))
    return _curve(lambda position: 0.05 + 0.95 * (1 - of(position)))


PRESETS: Mapping[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("linear", "the same everywhere", _curve(lambda position: 1.0)),
        Preset("ease in", "falls from first to last", _linear(_progress, rising=False)),
        Preset("ease out", "rises from first to last", _linear(_progress, rising=True)),
        Preset("ease in-out", "most in the middle", _linear(_off_centre, rising=False)),
        Preset("reverse in-out", "least in the middle", _linear(_off_centre, rising=True)),
        Preset("weak input", "a fifth on the way down", _weak("input")),
        Preset("weak output", "a fifth on the way up", _weak("output")),
        Preset("weak middle", "a fifth in the middle", _weak("middle")),
        Preset("strong middle", "a fifth except in the middle", _weak("input", "output")),
        Preset("style transfer", "the style alone", _by_part(style="w")),
        Preset("composition", "the composition alone", _by_part(layout="w")),
        Preset(
            "strong style transfer", "everything but composition", _by_part(style="w", rest="w")
        ),
        Preset(
            "style and composition",
            "both, each with its own weight",
            _by_part(style="w", layout="c"),
            reads="composition",
        ),
        Preset(
            "strong style and composition",
            "everything, the composition with its own weight",
            _by_part(style="w", layout="c", rest="w"),
            reads="composition",
        ),
        Preset(
            "style transfer precise",
            "the style, and away from its composition",
            _by_part(style="w", layout="b", on_negative=("layout",)),
            reads="boost",
        ),
        Preset(
            "composition precise",
            "the composition, and away from its style",
            _by_part(style="b", layout="w", rest=".1b", on_negative=("style", "rest")),
            reads="boost",
        ),
        Preset("style", "InstantStyle's style sites", _by_part(style="w"), by_role=True),
        Preset("layout", "InstantStyle's layout sites", _by_part(layout="w"), by_role=True),
        Preset(
            "style and layout",
            "InstantStyle's style and layout sites",
            _by_part(style="w", layout="c"),
            by_role=True,
            reads="composition",
        ),
    )
}
"""Every preset by its name."""


def find_preset(name: object) -> Preset:
    """The preset of that name in any spelling: case, spaces, hyphens and underscores are ignored.

    Raises OptionError.
    """
    known = {_letters(known): preset for known, preset in PRESETS.items()}
    letters = _letters(name) if isinstance(name, str) else ""
    if letters in known:
        return known[letters]
    near = get_close_matches(letters, known, n=1)
    hint = f" Did you mean {known[near[0]].name!r}?" if near else ""
    raise OptionError(
        f"preset {name!r}",
        reason="no such preset",
        hint=f"Presets: {', '.join(PRESETS)}.{hint}",
    )


def _letters(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).casefold()


def preset_scales(
    name: str, weights: PresetWeights, sites: Sequence[Site]
) -> tuple[SiteScale | None, ...]:
    """The scale that a preset gives to every site; None for sites that it leaves out.

    Raises OptionError where the preset has no sites on this base.
    """
    preset = find_preset(name)
    positions = site_positions(preset, sites)
    scales = tuple(preset.rule(position, weights) for position in positions)
    if not any(scales):
        parts = ", ".join(sorted({position.part for position in positions}))
        raise OptionError(
            f"preset {name!r}",
            reason=f"none of its sites exist on this base (only: {parts})",
            hint="Give scale= by site; `imageprompt probe` finds the sites, and the roles to state "
            "in the config of the base.",
        )
    return scales


def site_positions(preset: Preset, sites: Sequence[Site]) -> list[SitePosition]:
    """Where each site is. Raises OptionError for a base whose sampling order is unknown."""
    order = [site.transformer_index for site in sites if site.transformer_index is not None]
    if len(order) < len(sites) or not order:
        raise OptionError(
            f"preset {preset.name!r}",
            reason="the sampling order of this base's sites is unknown",
            hint="Give scale= by site, or state roles in the base's config: `imageprompt probe` "
            "finds both.",
        )
    total = max(order) + 1
    table = {} if preset.by_role else _COMFYUI_PARTS.get(_transformers_by_stage(sites), {})
    positions = []
    for site, t in zip(sites, order, strict=True):
        role: Part = "rest" if site.role == "other" else site.role
        part, share = table.get(t, (role, 1.0))
        positions.append(SitePosition(t, total, site.stage, part, share))
    return positions


_PartTable = Mapping[int, tuple[Part, float]]


def _part_table(style: Sequence[int], layout: Mapping[int, float], total: int) -> _PartTable:
    """Part and share of each transformer by its number; `layout` maps numbers to shares."""
    table: dict[int, tuple[Part, float]] = dict.fromkeys(range(total), ("rest", 1.0))
    table.update(dict.fromkeys(style, ("style", 1.0)))
    table.update({t: ("layout", share) for t, share in layout.items()})
    return table


_COMFYUI_PARTS: Mapping[tuple[int, ...], _PartTable] = {
    (6, 1, 9): _part_table((0, 1, 2, 3, *range(9, 16)), {4: 0.25, 5: 1.0}, 16),  # SD1.5, SD2
    (4, 1, 6): _part_table((6,), {3: 1.0}, 11),  # SDXL, Kolors
}
"""ComfyUI's parts, by the number of transformers in input, middle and output. On any other UNet the
parts are the roles of the host."""


def _transformers_by_stage(sites: Sequence[Site]) -> tuple[int, ...]:
    stages = [stage for _, stage in {(site.transformer_index, site.stage) for site in sites}]
    return tuple(stages.count(stage) for stage in ("input", "middle", "output"))
