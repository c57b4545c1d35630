"""`imageprompt hosts`, `variants` and `presets`: what is known, as tables."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from imageprompt.cli import flags
from imageprompt.core.console import (
    Parser,
    add_json,
    describe,
    print_json,
    print_lines,
    print_table,
    provided,
)
from imageprompt.core.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imageprompt.control import Controls
    from imageprompt.core.spec import Site


def add_hosts(command: Parser) -> None:
    describe(command, _hosts, "imageprompt hosts", "imageprompt hosts --json")
    add_json(command)


def _hosts(options: argparse.Namespace) -> int:
    from imageprompt.hosts import HOSTS

    rows = [
        {
            "name": host.name,
            "base": spec.family,
            "sites": len(spec.sites),
            "token width": spec.cross_attention_dim,
            "site widths": sorted({site.inner_dim for site in spec.sites}),
            "runs": host.attachable,
            "trains": host.training is not None,
        }
        for host in HOSTS
        for spec in host.published()
    ]
    return print_table(rows, options.json)


def add_variants(command: Parser) -> None:
    describe(
        command,
        _variants,
        "imageprompt variants",
        "imageprompt variants --budget 50M",
        "imageprompt variants --budget 200M --base sdxl --json",
        notes="With a budget: the parameters of each variant on the published bases, and the rank "
        "that\nK' and V' can have within it (imageprompt compress). Image encoders are apart.",
    )
    absent = argparse.SUPPRESS
    command.add_argument(
        "--budget", metavar="N", default=absent, help="parameters of the whole adapter: 50M, 500k"
    )
    command.add_argument(
        "--base", metavar="NAME", default=absent, help="with a budget: one published base"
    )
    add_json(command)


def _variants(options: argparse.Namespace) -> int:
    from imageprompt.variants import VARIANTS

    if "budget" in options:
        return _designs(options)
    if "base" in options:
        raise OptionError(
            "--base without --budget",
            reason="has no effect",
            hint="Give the parameters of the whole adapter: --budget 50M.",
        )
    rows = [
        {
            "variant": variant.name,
            "reads": str(variant.feature),
            "no picture": variant.null_rule,
            "what": variant.summary,
        }
        for variant in VARIANTS
    ]
    return print_table(rows, options.json)


def _designs(options: argparse.Namespace) -> int:
    from imageprompt.deploy.compress.result import parse_budget
    from imageprompt.deploy.plan.designs import designs, suits

    budget = parse_budget(options.budget).parameters
    if budget is None:
        raise OptionError(
            f"budget {options.budget!r}",
            reason="a share of K' and V', of no adapter",
            hint="Give parameters, 50M for example; a share is for imageprompt compress.",
        )
    found = designs(budget, getattr(options, "base", None))
    if options.json:
        print_json([design.as_dict() for design in found])
        return 0
    print_table([design.as_row() for design in found], as_json=False)
    print_lines("", suits(budget))
    return 0


# ── presets ─────────────────────────────────────────────────────────────────────────────────────


def add_presets(command: Parser) -> None:
    from imageprompt.control import DEFAULT_SCALE

    describe(
        command,
        _presets,
        "imageprompt presets",
        "imageprompt presets style-transfer --scale 0.8",
        'imageprompt presets "style and composition" --base sdxl --scale 0.8 --composition 0.5',
        notes="With a preset: its scale at every transformer of the base, as ComfyUI's layer"
        " weights and\nas diffusers' scale.",
    )
    add = command.add_argument
    add("name", nargs="?", metavar="PRESET", help="print its numbers (default: list all presets)")
    flags.add_base(command, "the base (default sdxl)", default="sdxl")
    add(
        "--scale",
        type=float,
        metavar="S",
        default=argparse.SUPPRESS,
        help=f"weight of the preset, 0..2 (default {DEFAULT_SCALE:g})",
    )
    for name in _EXTRA:
        add(
            f"--{name}",
            type=float,
            metavar=name[0].upper(),
            default=argparse.SUPPRESS,
            help=f"{name} strength of presets that have one, 0..2 (default: the scale)",
        )
    add_json(command)


_EXTRA = ("composition", "boost")


def _presets(options: argparse.Namespace) -> int:
    from imageprompt.control.presets import PRESETS

    if options.name is not None:
        return _numbers(options)
    for name in provided(options, "scale", *_EXTRA):
        raise OptionError(
            f"--{name} without a preset",
            reason="has no effect",
            hint="Name the preset: imageprompt presets style-transfer --scale 0.8.",
        )
    rows = [
        {
            "preset": preset.name,
            "extra flags": f"--{preset.reads}" if preset.reads else None,
            "what": preset.summary,
        }
        for preset in PRESETS.values()
    ]
    return print_table(rows, options.json)


def _numbers(options: argparse.Namespace) -> int:
    """Print the numbers of a preset on a base."""
    from imageprompt.checkpoint.identify.base_config import open_base
    from imageprompt.control import Controls
    from imageprompt.control.exports import comfyui_string, diffusers_scale

    controls = Controls(preset=options.name, **provided(options, "scale", *_EXTRA))
    base = open_base(options.base).spec
    numbers: dict[str, Any] = {
        "base": base.family,
        "transformers": _transformers(controls, base.sites),
        "comfyui": comfyui_string(controls, base.sites),
    }
    try:
        numbers["diffusers"] = diffusers_scale(controls, base.sites)
        diffusers = numbers["diffusers"]
    except OptionError as error:  # precise presets: only ComfyUI can express them
        numbers["diffusers"], diffusers = None, error
    if options.json:
        print_json(numbers)
        return 0
    print_lines(
        f"{options.name} on {base.family}",
        "",
        "ComfyUI layer_weights:",
        f"  {numbers['comfyui']}",
        "diffusers set_ip_adapter_scale:",
        f"  {diffusers}",
        "",
    )
    return print_table(numbers["transformers"], as_json=False)


def _transformers(controls: Controls, sites: Sequence[Site]) -> list[dict[str, Any]]:
    """One row for each transformer, in sampling order."""
    from imageprompt.control.controls import requested_scales

    scales = zip(sites, requested_scales(controls, sites), strict=True)
    rows = {
        site.transformer_index: {
            "transformer": site.transformer_index,
            "where": site.name.split(".transformer_blocks.")[0],
            "role": site.role,
            "scale": 0.0 if scale is None else scale.scale,
            "branch": "negative" if scale is not None and scale.on_negative else "positive",
        }
        for site, scale in sorted(scales, key=lambda pair: pair[0].transformer_index or 0)
    }
    return list(rows.values())
