"""`imageprompt quantize`: an exported base in fewer bits."""

from __future__ import annotations

import argparse
from typing import Any

from imageprompt.core.console import (
    Parser,
    add_json,
    describe,
    print_json,
    print_text,
    provided,
    wants_progress,
)


def add_quantize(command: Parser) -> None:
    describe(
        command,
        _quantize,
        "imageprompt quantize exported --to int8 --output small",
        "imageprompt quantize exported --to w8a8 --references pictures --output fast",
        "imageprompt quantize --to w8a8 --backend openvino --output fast",
        notes="int8: weights alone, a quarter of the size. w8a8: activations too, which is what\n"
        "makes it faster; it is calibrated with image prompts in use. int4: smaller, and less\n"
        "like the original. generate --runtime reads the folder like any other.",
    )
    add, absent = command.add_argument, argparse.SUPPRESS
    command.add_argument(
        "exported",
        nargs="?",
        metavar="EXPORTED",
        help="a folder of imageprompt export (default: --base is exported first)",
    )
    add("--to", required=True, choices=("int8", "w8a8", "int4"), help="the precision")
    add("--output", required=True, metavar="DIR", help="write the folder here")
    add(
        "--base",
        default=absent,
        metavar="DIR|HUB",
        help="the pipeline that was exported, if it has moved; or the one to export",
    )
    add("--adapter", default=absent, metavar="FILE", help="calibrate with this one")
    add("--encoder", default=absent, metavar="DIR|HUB", help="the adapter's image encoder")
    add(
        "--backend",
        default=absent,
        metavar="NAME",
        help="what a base is exported to: openvino (default), onnx",
    )
    add(
        "--references",
        default=absent,
        metavar="DIR",
        help="16 or more pictures like yours: half of them calibrate, half are compared "
        "(default: drawn scenes)",
    )
    add(
        "--pictures",
        type=int,
        default=absent,
        metavar="N",
        help="generated at both precisions (default 24; 0: none)",
    )
    add_json(command)


def _quantize(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from imageprompt.deploy.quantize.run import quantize

    names = ("base", "adapter", "encoder", "backend", "references", "pictures")
    with tqdm(desc="calibrating", disable=not wants_progress(options), leave=False) as bar:
        made = quantize(
            options.exported,
            to=options.to,
            output=options.output,
            **provided(options, *names),
            on_step=bar.update,
        )
    result: Any = made.as_dict() if options.json else made
    print_json(result) if options.json else print_text(result)
    return 0
