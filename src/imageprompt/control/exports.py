"""Controls in the notations of other programs: ComfyUI's layer weights and diffusers' scale."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from imageprompt.control.controls import Controls, requested_scales
from imageprompt.control.scales import SiteScale
from imageprompt.core.errors import OptionError
from imageprompt.core.spec import Site

_ATTENTION = re.compile(r"(down|up)_blocks\.(\d+)\.attentions\.(\d+)\.|(mid)_block\.")


def comfyui_string(controls: Controls, sites: Sequence[Site]) -> str:
    """ComfyUI's `layer_weights`, such as `"3:1.0,6:0.5"`, for a node whose weight is 1.

    Sites that show the reference to the negative rows are included: ComfyUI does the same if the
    precise weight type is chosen there. Raises OptionError where the scales within a transformer
    differ.
    """
    scales: dict[int, SiteScale] = {}
    for site, scale in zip(sites, requested_scales(controls, sites), strict=True):
        if scale is None:
            continue
        t = site.transformer_index
        if t is None:
            raise OptionError(site.name, reason="its place in sampling order is unknown")
        _check_same(scales.setdefault(t, scale), scale, f"transformer {t}")
    return ",".join(f"{t}:{scales[t].scale!r}" for t in sorted(scales))


def diffusers_scale(controls: Controls, sites: Sequence[Site]) -> dict[str, Any]:
    """What `pipe.set_ip_adapter_scale` takes: one number for each attention of each block.

    Raises OptionError for precise presets, which diffusers cannot express, and where the scales
    within a transformer differ.
    """
    scales: dict[tuple[str, ...], SiteScale] = {}
    for site, requested in zip(sites, requested_scales(controls, sites), strict=True):
        match = _ATTENTION.match(site.name)
        if match is None:
            raise OptionError(site.name, reason="diffusers has no name for its scale")
        place = tuple(part for part in match.groups() if part is not None)
        scale = SiteScale(0.0) if requested is None else requested
        if scale.on_negative:
            raise OptionError(
                f"preset {controls.preset!r}",
                reason="diffusers cannot show a reference to the negative rows",
                hint="Export it for ComfyUI, or choose a preset that is not precise.",
            )
        _check_same(scales.setdefault(place, scale), scale, site.name)
    nested: dict[str, Any] = {}
    for place, scale in scales.items():
        if len(place) == 1:
            nested[place[0]] = scale.scale
        else:
            stage, block, _ = place
            nested.setdefault(stage, {}).setdefault(f"block_{block}", []).append(scale.scale)
    return nested


def _check_same(first: SiteScale, other: SiteScale, where: str) -> None:
    if first != other:
        raise OptionError(where, reason="its sites differ, which this notation cannot express")
