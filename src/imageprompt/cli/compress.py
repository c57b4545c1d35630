"""`imageprompt compress`: a lighter adapter for one base."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from imageprompt.core import bundled
from imageprompt.core.console import (
    Parser,
    add_json,
    describe,
    print_json,
    print_text,
    provided,
    wants_progress,
)


def add_compress(command: Parser) -> None:
    describe(
        command,
        _compress,
        "imageprompt compress plus --budget 25% --output light",
        "imageprompt compress ip-adapter_sdxl.safetensors --base ./sdxl --budget 50M \\",
        "    --references pictures --output light",
        "imageprompt compress plus --error 0.1 --json",
        notes="K' and V' are kept as what they add, in low rank, to the base's own K and V. The\n"
        "light file needs that base; the expanded one is a standard file for every program.",
    )
    command.add_argument(
        "adapter",
        metavar="ADAPTER",
        help="an adapter file, a Hub file, or the name of one of the base's own: plus",
    )
    add, absent = command.add_argument, argparse.SUPPRESS
    add(
        "--base",
        default=bundled.NAME,
        metavar="DIR|HUB",
        help="the pipeline that it was made for (default %(default)s)",
    )
    goal = command.add_mutually_exclusive_group(required=True)
    goal.add_argument(
        "--budget",
        metavar="N|P%",
        help="parameters of the whole adapter (50M, 500k), or a share of its K' and V' (25%%)",
    )
    goal.add_argument(
        "--error",
        type=float,
        metavar="E",
        help="the largest error of the guided prediction, over the adapter's whole effect",
    )
    add(
        "--references",
        default=absent,
        metavar="DIR",
        help="pictures: half of them are fitted, half measured (default: drawn scenes)",
    )
    add("--encoder", default=absent, metavar="DIR|HUB", help="the adapter's image encoder")
    add("--device", default=absent, metavar="NAME", help="cpu, cuda, mps (default: the best)")
    add(
        "--dtype",
        default=absent,
        choices=("int8", "float16", "float32"),
        help="of the light file (default int8)",
    )
    add(
        "--pictures",
        type=int,
        default=absent,
        metavar="N",
        help="generated with both adapters on a bundled stack (default 24; 0: none)",
    )
    add("--output", type=Path, default=absent, metavar="DIR", help="write the two files here")
    add_json(command)


def _compress(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from imageprompt.deploy.compress.result import parse_budget

    budget = None if options.budget is None else parse_budget(options.budget)
    from imageprompt.deploy.compress.run import compress

    names = ("references", "encoder", "device", "dtype", "pictures", "output")
    with tqdm(desc="measuring", disable=not wants_progress(options), leave=False) as bar:
        made = compress(
            options.adapter,
            options.base,
            budget=budget,
            error=options.error,
            **provided(options, *names),
            on_step=bar.update,
        )
    result: Any = made.as_dict() if options.json else made
    print_json(result) if options.json else print_text(result)
    return 0
