"""What is taken from a reference, by name: ComfyUI's presets, and InstantStyle's roles.

A preset gives every site a share of w (the scale), c (the composition's) or b (the boost). Where a
share is pushed, the site shows the reference to the negative rows instead of the positive ones.
The formulas are those of ComfyUI_IPAdapter_plus 9d076a3 (`IPAdapterPlus.py`,
`CrossAttentionPatch.py`), operation for operation, so that the numbers agree to the last digit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from imageprompt.core.errors import OptionError
from imageprompt.core.spec import Site

Part = Literal["style", "layout", "rest"]


@dataclass(frozen=True)
class PresetWeights:
    """w, c and b of a preset; c and b are w where they are not given."""

    w: float
    c: float
    b: float


@dataclass(frozen=True)
class SitePosition:
    """Where a site is: transformer t of `total` in sampling order, its section and its part."""

    t: int
    total: int
    stage: str
    part: Part
    share: float = 1.0
    """What the layout's number is multiplied by here: SD1.5's fourth transformer takes .25."""


@dataclass(frozen=True)
class SiteScale:
    """The scale at a site; `on_negative` where the negative rows get it instead of the positive."""

    scale: float
    on_negative: bool = False


Rule = Callable[[SitePosition, PresetWeights], SiteScale | None]
"""What a site is given; None where it is left out."""


@dataclass(frozen=True)
class Preset:
    """A rule with a name. `reads` says which of c and b it has a use for."""

    name: str
    summary: str
    rule: Rule
    by_role: bool = False
    """Parts are the host's roles (InstantStyle), not ComfyUI's sets of transformers."""
    reads: str = ""


def _curve(factor: Callable[[SitePosition], float]) -> Rule:
    return lambda spot, amounts: SiteScale(amounts.w * factor(spot))


def _weak(*sections: str) -> Rule:
    return _curve(lambda spot: 0.2 if spot.stage in sections else 1.0)


def _parts(
    style: str = "", layout: str = "", rest: str = "", *, pushed: tuple[Part, ...] = ()
) -> Rule:
    """By part, "w", "c" or "b", or nothing; `.1b` is a tenth of b."""

    def rule(spot: SitePosition, amounts: PresetWeights) -> SiteScale | None:
        name = {"style": style, "layout": layout, "rest": rest}[spot.part]
        if not name:
            return None
        amount: float = getattr(amounts, name[-1])
        if name.startswith(".1"):
            amount = amount * 0.1
        # where everything else is on as well, ComfyUI does not weaken the layout's first half
        share = 1.0 if rest == "w" else spot.share
        return SiteScale(amount * share, on_negative=spot.part in pushed)

    return rule


PRESETS: Mapping[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("linear", "the same everywhere", _curve(lambda s: 1.0)),
        Preset("ease in", "falls from first to last", _curve(lambda s: 0.05 + 0.95 * (1 - _x(s)))),
        Preset("ease out", "rises from first to last", _curve(lambda s: 0.05 + 0.95 * _x(s))),
        Preset("ease in-out", "most in the middle", _curve(lambda s: 0.05 + 0.95 * (1 - _off(s)))),
        Preset("reverse in-out", "least in the middle", _curve(lambda s: 0.05 + 0.95 * _off(s))),
        Preset("weak input", "a fifth on the way down", _weak("input")),
        Preset("weak output", "a fifth on the way up", _weak("output")),
        Preset("weak middle", "a fifth in the middle", _weak("middle")),
        Preset("strong middle", "a fifth but in the middle", _weak("input", "output")),
        Preset("style transfer", "the style alone", _parts(style="w")),
        Preset("composition", "the composition alone", _parts(layout="w")),
        Preset("strong style transfer", "all but composition", _parts(style="w", rest="w")),
        Preset(
            "style and composition",
            "both, each with a number of its own",
            _parts(style="w", layout="c"),
            reads="composition",
        ),
        Preset(
            "strong style and composition",
            "everything, the composition with a number of its own",
            _parts(style="w", layout="c", rest="w"),
            reads="composition",
        ),
        Preset(
            "style transfer precise",
            "the style, and away from its composition",
            _parts(style="w", layout="b", pushed=("layout",)),
            reads="boost",
        ),
        Preset(
            "composition precise",
            "the composition, and away from its style",
            _parts(style="b", layout="w", rest=".1b", pushed=("style", "rest")),
            reads="boost",
        ),
        Preset("style", "InstantStyle's style sites", _parts(style="w"), by_role=True),
        Preset("layout", "InstantStyle's layout sites", _parts(layout="w"), by_role=True),
        Preset(
            "style and layout",
            "InstantStyle's style and layout sites",
            _parts(style="w", layout="c"),
            by_role=True,
            reads="composition",
        ),
    )
}
"""Every preset by its name."""


def preset(name: object) -> Preset:
    """The preset of that name. Raises OptionError."""
    if isinstance(name, str) and name in PRESETS:
        return PRESETS[name]
    near = get_close_matches(str(name), PRESETS, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise OptionError(
        f"preset {name!r}",
        reason="no such preset",
        hint=f"There are: {', '.join(PRESETS)}.{hint}",
    )


def given(name: str, amounts: PresetWeights, sites: Sequence[Site]) -> tuple[SiteScale | None, ...]:
    """What a preset gives to every site. Raises OptionError where the base has no such parts."""
    chosen = preset(name)
    places = spots(chosen, sites)
    found = tuple(chosen.rule(spot, amounts) for spot in places)
    if not any(found):
        parts = ", ".join(sorted({spot.part for spot in places}))
        raise OptionError(
            f"preset {name!r}",
            reason=f"this base has none of the sites that it is about (only: {parts})",
            hint="Give scale= by site instead.",
        )
    return found


def spots(chosen: Preset, sites: Sequence[Site]) -> list[SitePosition]:
    """Where each site is. Raises OptionError for a base whose sampling order is not described."""
    groups = [site.transformer_index for site in sites if site.transformer_index is not None]
    if len(groups) < len(sites) or not groups:
        raise OptionError(
            f"preset {chosen.name!r}",
            reason="the order of this base's sites is not described",
            hint="Give scale= by site instead.",
        )
    total = max(groups) + 1
    known = {} if chosen.by_role else _SHAPES.get(_shape(sites), {})
    places = []
    for site, t in zip(sites, groups, strict=True):
        role: Part = "rest" if site.role == "other" else site.role
        part, share = known.get(t, (role, 1.0))
        places.append(SitePosition(t, total, site.stage, part, share))
    return places


_Parts = Mapping[int, tuple[Part, float]]


def _known(style: Sequence[int], layout: Mapping[int, float], total: int) -> _Parts:
    """Part and share of each transformer by its number."""
    rest: dict[int, tuple[Part, float]] = dict.fromkeys(range(total), ("rest", 1.0))
    rest.update(dict.fromkeys(style, ("style", 1.0)))
    rest.update({t: ("layout", share) for t, share in layout.items()})
    return rest


_SHAPES: Mapping[tuple[int, ...], _Parts] = {
    (6, 1, 9): _known((0, 1, 2, 3, *range(9, 16)), {4: 0.25, 5: 1.0}, 16),  # SD1.5, SD2
    (4, 1, 6): _known((6,), {3: 1.0}, 11),  # SDXL, Kolors
}
"""ComfyUI's parts by the number of transformers in input, middle and output. On any other UNet the
parts are the host's roles."""


def _shape(sites: Sequence[Site]) -> tuple[int, ...]:
    sections = [section for _, section in {(site.transformer_index, site.stage) for site in sites}]
    return tuple(sections.count(name) for name in ("input", "middle", "output"))


def _x(spot: SitePosition) -> float:
    return spot.t / spot.total


def _off(spot: SitePosition) -> float:
    """Distance from the middle of the network: 1 at its start, 0 in its middle."""
    return abs(spot.t - (spot.total / 2)) / (spot.total / 2)
