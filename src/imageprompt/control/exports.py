"""Controls in the notations of other programs: ComfyUI's layer weights, diffusers' scale."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from imageprompt.control.controls import Controls
from imageprompt.control.presets import SiteScale
from imageprompt.control.scale_table import requested_scales
from imageprompt.core.errors import OptionError
from imageprompt.core.spec import Site

_ATTENTION = re.compile(r"(down|up)_blocks\.(\d+)\.attentions\.(\d+)\.|(mid)_block\.")


def comfyui_string(controls: Controls, sites: Sequence[Site]) -> str:
    """ComfyUI's `layer_weights`, `"3:1.0,6:0.5"`, for a weight of 1 there.

    What is pushed into the negative branch is in it too: with the same precise type chosen there,
    ComfyUI pushes it as well. Raises OptionError where the numbers differ within a transformer.
    """
    found: dict[int, SiteScale] = {}
    for site, one in _listed(controls, sites):
        if site.transformer_index is None:
            raise OptionError(site.name, reason="its place in sampling order is not described")
        _same(
            found.setdefault(site.transformer_index, one),
            one,
            f"transformer {site.transformer_index}",
        )
    return ",".join(f"{group}:{found[group].scale!r}" for group in sorted(found))


def diffusers_scale(controls: Controls, sites: Sequence[Site]) -> dict[str, Any]:
    """What `pipe.set_ip_adapter_scale` takes: one number for each attention of each block.

    Raises OptionError for precise presets, which diffusers cannot express, and where the numbers
    differ within a transformer.
    """
    numbers: dict[tuple[str, ...], SiteScale] = {}
    for site, one in zip(sites, requested_scales(controls, sites), strict=True):
        match = _ATTENTION.match(site.name)
        if match is None:
            raise OptionError(site.name, reason="diffusers has no name for its scale")
        place = tuple(part for part in match.groups() if part is not None)
        one = SiteScale(0.0) if one is None else one
        if one.on_negative:
            raise OptionError(
                f"preset {controls.preset!r}",
                reason="diffusers cannot show a reference to the negative branch",
                hint="Export it for ComfyUI, or choose a preset that is not precise.",
            )
        _same(numbers.setdefault(place, one), one, site.name)
    scale: dict[str, Any] = {}
    for place, one in numbers.items():
        if len(place) == 1:
            scale[place[0]] = one.scale
        else:
            section, block, _ = place
            scale.setdefault(section, {}).setdefault(f"block_{block}", []).append(one.scale)
    return scale


def _listed(controls: Controls, sites: Sequence[Site]) -> Iterator[tuple[Site, SiteScale]]:
    for site, one in zip(sites, requested_scales(controls, sites), strict=True):
        if one is not None:
            yield site, one


def _same(first: SiteScale, other: SiteScale, where: str) -> None:
    if first != other:
        raise OptionError(
            where, reason="its sites have different numbers, for which this notation has no place"
        )
