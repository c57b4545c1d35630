"""The command `imageprompt presets`: what presets there are, and their numbers on a base."""

from __future__ import annotations

import argparse
from typing import Any

from imageprompt.core.console import add_command, add_json, given, print_json, print_table


def add_commands(commands: Any) -> None:
    """Add the command to the parser."""
    command = add_command(
        commands,
        "presets",
        _presets,
        "what `generate --preset` can take from a reference, and its numbers for other programs",
        "imageprompt presets",
        'imageprompt presets "style and composition" --base sdxl --scale 0.8 --composition 0.5',
    )
    add = command.add_argument
    add("name", nargs="?", help="a preset; without one all are listed")
    add("--base", default="sdxl", help="sd15, sdxl ... or the folder of a base; default sdxl")
    add("--scale", type=float, default=argparse.SUPPRESS, help="its weight, 0 to 2; default 1")
    for amount in ("composition", "boost"):
        add(
            f"--{amount}",
            type=float,
            default=argparse.SUPPRESS,
            help=f"the {amount}'s own number, for presets that have one; default: the scale",
        )
    add_json(command)


def _presets(options: argparse.Namespace) -> int:
    from imageprompt.control import PRESETS
    from imageprompt.core.errors import OptionError

    if options.name is not None:
        return _numbers(options)
    for name in given(options, "scale", "composition", "boost"):
        raise OptionError(
            f"--{name} without a preset",
            reason="it is a number of one",
            hint='Name it: imageprompt presets "style transfer" --scale 0.8.',
        )
    rows = [
        {"preset": preset.name, "takes": preset.reads, "what": preset.summary}
        for preset in PRESETS.values()
    ]
    return print_table(rows, options.json)


def _numbers(options: argparse.Namespace) -> int:
    """Transformer by transformer, as ComfyUI's layer weights, and as diffusers' scale."""
    from imageprompt.checkpoint.identify.base_config import open_base
    from imageprompt.control import Controls
    from imageprompt.control.exports import comfyui_string, diffusers_scale
    from imageprompt.control.scale_table import requested_scales
    from imageprompt.core.errors import OptionError

    amounts = given(options, "scale", "composition", "boost")
    controls = Controls(preset=options.name, **amounts)
    base = open_base(options.base).spec
    sites = base.sites
    order = sorted(
        zip(sites, requested_scales(controls, sites), strict=True),
        key=lambda p: p[0].transformer_index or 0,
    )
    rows = {
        site.transformer_index: {
            "transformer": site.transformer_index,
            "where": site.name.split(".transformer_blocks.")[0],
            "role": site.role,
            "scale": 0.0 if one is None else one.scale,
            "shown to": "negative" if one is not None and one.on_negative else "positive",
        }
        for site, one in order
    }
    found: dict[str, Any] = {
        "base": base.family,
        "transformers": list(rows.values()),
        "comfyui": comfyui_string(controls, sites),
    }
    try:
        found["diffusers"] = diffusers_scale(controls, sites)
    except OptionError as error:  # precise presets: only ComfyUI can express them
        found["diffusers"] = None
        why = str(error)
    if options.json:
        print_json(found)
        return 0
    print(f"{options.name} on {base.family}\n")
    print(f"ComfyUI layer_weights:\n  {found['comfyui']}")
    print(f"diffusers set_ip_adapter_scale:\n  {found['diffusers'] or why}\n")
    return print_table(found["transformers"], as_json=False)
