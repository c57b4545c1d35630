"""`imageprompt export`: a base with image prompts as inputs, for other runtimes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from imageprompt.core import bundled
from imageprompt.core.console import (
    Bars,
    Parser,
    add_json,
    describe,
    print_json,
    print_text,
    provided,
    wants_progress,
)

_TO = ("openvino", "onnx", "pt2", "aoti", "coreml", "executorch")
_PARTS = ("denoiser", "vae-decoder", "vae-encoder", "text-encoder", "image-encoder", "key-values")


def add_export(command: Parser) -> None:
    describe(
        command,
        _export,
        "imageprompt export --to openvino --output exported",
        "imageprompt export --to onnx --base ./stable-diffusion-v1-5 \\",
        "    --adapter ip-adapter-plus_sd15.safetensors --output exported",
        "imageprompt export --to openvino --parts denoiser vae-decoder --output exported",
        notes="Strength, references, masks and sizes are inputs of the graph: changing them needs\n"
        "no new export. Every part that runs here is compared with PyTorch, at other sizes than\n"
        "it was traced with; above the tolerance (1e-4 in float32) nothing is written.\n"
        "Then: imageprompt generate --exported DIR --reference PIC",
    )
    add, absent = command.add_argument, argparse.SUPPRESS
    add("--to", required=True, choices=_TO, help="what to export to")
    add(
        "--base",
        default=bundled.NAME,
        metavar="DIR|HUB",
        help="a diffusers pipeline (default %(default)s)",
    )
    add(
        "--adapter",
        default=absent,
        metavar="FILE|HUB|NAME",
        help="says where image prompts enter; others of its kind run too (default: plus)",
    )
    add("--encoder", default=absent, metavar="DIR|HUB", help="the adapter's image encoder")
    add(
        "--parts",
        nargs="+",
        choices=_PARTS,
        default=absent,
        metavar="PART",
        help=f"{', '.join(_PARTS)} (default: all that there are)",
    )
    add(
        "--precision",
        default=absent,
        choices=("float32", "float16"),
        help="of the stored weights (default float32)",
    )
    add(
        "--controlnet",
        action="store_true",
        default=absent,
        help="the graph also reads the residuals of a ControlNet (UNets)",
    )
    add("--output", type=Path, required=True, metavar="DIR", help="a new folder, or an old export")
    add_json(command)


def _export(options: argparse.Namespace) -> int:
    from imageprompt.deploy.export import export

    names = ("adapter", "encoder", "parts", "precision", "controlnet")
    with Bars(wants_progress(options)) as bars:
        made = export(
            options.base,
            to=options.to,
            output=options.output,
            on_part=lambda name, done, total: bars.update(f"exporting {name}", done, total),
            **provided(options, *names),
        )
    result: Any = made.as_dict() if options.json else made
    print_json(result) if options.json else print_text(result)
    return 0
