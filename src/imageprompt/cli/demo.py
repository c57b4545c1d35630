"""`imageprompt demo`: a first contact sheet, or drawn scenes with captions to train on."""

from __future__ import annotations

import argparse
from pathlib import Path

from imageprompt.core import bundled
from imageprompt.core.console import (
    Parser,
    add_json,
    describe,
    print_lines,
    provided,
    wants_progress,
)
from imageprompt.core.errors import OptionError


def add_demo(command: Parser) -> None:
    describe(
        command,
        _demo,
        "imageprompt demo",
        "imageprompt demo --output sheet --seed 7 --count 3",
        "imageprompt demo --base bundled-sd3-128",
        "imageprompt demo --draw scenes --num-scenes 4000",
    )
    absent = argparse.SUPPRESS
    add = command.add_argument
    add("--output", type=Path, metavar="DIR", default=absent, help="folder (default outputs/demo)")
    add("--seed", type=int, metavar="N", default=absent, help="which references are drawn")
    add("--count", type=int, metavar="N", default=absent, help="number of references (default 6)")
    add(
        "--base",
        choices=tuple(bundled.FOLDERS),
        default=absent,
        help=f"which bundled stack (default {bundled.NAME})",
    )
    draw = command.add_argument_group("training data")
    draw.add_argument(
        "--draw",
        type=Path,
        metavar="DIR",
        default=absent,
        help="only draw scenes with captions: a folder to train on, and a held-out one",
    )
    draw.add_argument(
        "--num-scenes",
        type=int,
        metavar="N",
        default=absent,
        help="number of scenes to train on (default 4000)",
    )
    add_json(command)


def _demo(options: argparse.Namespace) -> int:
    if "draw" in options:
        return _draw(options)
    if "num_scenes" in options:
        raise OptionError(
            "--num-scenes without --draw", reason="has no effect", hint="Did you mean --count?"
        )
    from imageprompt.demo import showcase

    arguments = provided(options, "output", "base", "seed", "count")
    showcase.run(**arguments, json=options.json, progress=wants_progress(options))
    return 0


def _draw(options: argparse.Namespace) -> int:
    for name in provided(options, "output", "base", "count"):
        raise OptionError(
            f"--{name} with --draw",
            reason="belongs to the demo sheet",
            hint="Use --draw DIR --num-scenes N.",
        )
    from imageprompt.demo.datasets import draw_folder

    arguments = provided(options, "seed")
    if "num_scenes" in options:
        arguments["count"] = options.num_scenes
    print_lines(*draw_folder(options.draw, **arguments))
    return 0
