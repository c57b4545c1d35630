"""`imageprompt plan`: memory and time of a base with an adapter, before anything is downloaded."""

from __future__ import annotations

import argparse
from typing import Any

from imageprompt.core import bundled
from imageprompt.core.console import Parser, add_json, describe, print_json, print_text

NONE = "none"


def add_plan(command: Parser) -> None:
    describe(
        command,
        _plan,
        "imageprompt plan --base sdxl --adapter plus --gpu 12GB",
        'imageprompt plan --base flux-dev --gpu "RTX 4090" --saved-prompts',
        "imageprompt plan --base ./my-pipeline --adapter adapter.safetensors --json",
        notes="weights: all of it. peak: weights on the card, activations of the largest phase, and"
        "\n0.5 GiB of CUDA. model offload: one part at a time on the card; group: one layer."
        "\nint8, nf4: the denoiser and text encoders of more than 10^9 weights; adapters stay as"
        "\nthey are. Activations assume fused attention, which is PyTorch's default.",
    )
    command.add_argument(
        "--base",
        default=bundled.NAME,
        metavar="NAME_OR_PATH",
        help="sd15, sdxl, flux-dev ..., a pipeline's folder or Hub id (default %(default)s)",
    )
    command.add_argument(
        "--adapter",
        default="plus",
        metavar="NAME_OR_FILE",
        help="a variant, an adapter file, or none (default %(default)s)",
    )
    command.add_argument(
        "--size", type=_size, metavar="WxH", help="512x768 or 512, in pixels (default: the base's)"
    )
    command.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        default="float16",
        help="precision (default %(default)s)",
    )
    command.add_argument("--steps", type=int, metavar="N", help="default: the pipeline's")
    command.add_argument(
        "--batch-size", type=int, default=1, metavar="N", help="pictures at a time (default 1)"
    )
    command.add_argument(
        "--gpu", metavar="NAME_OR_MEMORY", help='"RTX 3060", its memory alone: 12GB, or cpu'
    )
    command.add_argument(
        "--saved-prompts",
        action="store_true",
        help="image prompts are encoded already: no image encoder is loaded",
    )
    add_json(command)


def _size(text: str) -> tuple[int, int]:
    from imageprompt.generation.option_values import parse_size

    return parse_size(text)


def _plan(options: argparse.Namespace) -> int:
    from imageprompt.deploy.plan import gpu_of, plan

    found = plan(
        options.base,
        None if options.adapter == NONE else options.adapter,
        size=options.size,
        dtype=options.dtype,
        steps=options.steps,
        batch_size=options.batch_size,
        gpu=None if options.gpu is None else gpu_of(options.gpu),
        saved_prompts=options.saved_prompts,
    )
    result: Any = found.as_dict() if options.json else found
    print_json(result) if options.json else print_text(result)
    return 0
