"""The command `imageprompt prepare`: encodes a training set once, into the config's cache."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from imageprompt.cli.flags import add_set
from imageprompt.core.console import Bars, add_command, add_json, print_json, wants_progress


def add_commands(commands: Any) -> None:
    """Add the command to the parser."""
    command = add_command(
        commands,
        "prepare",
        _prepare,
        "encode the pictures and captions of a training set once, into its cache",
        "imageprompt prepare config.yaml",
        "imageprompt prepare config.yaml --set cache=features --dry-run",
        "imageprompt prepare config.yaml --verify",
    )
    add = command.add_argument
    add("config", type=Path, metavar="CONFIG.yaml", help="the config of the run to prepare")
    add_set(command)
    add("--dry-run", action="store_true", help="say what there is to encode and what disk it takes")
    add("--verify", action="store_true", help="read all of the cache; make anew what is damaged")
    add_json(command)
    command.epilog = (
        f"{command.epilog}\n\nIt may be stopped and started again, and run several times at once:"
        " nothing is\nencoded twice. `imageprompt train` prepares what is missing by itself."
    )


def _prepare(options: argparse.Namespace) -> int:
    from imageprompt.training.cache.prepare import NAMES
    from imageprompt.training.config.config import TrainingConfig
    from imageprompt.training.prepare_for_config import prepare_for

    config = TrainingConfig.load(options.config, options.set)
    with Bars(wants_progress(options)) as bars:
        done = prepare_for(
            config,
            verify=options.verify,
            dry_run=options.dry_run,
            log=lambda line: print(line, file=sys.stderr),
            on_progress=bars.update,
        )
    if options.json:
        print_json(done.as_dict())
        return 0
    for kind, name in NAMES.items():
        if kind in done.kept:
            print(f"{name}: {done.encoded.get(kind, 0):,} encoded, {done.kept[kind]:,} were there")
    for line in [*done.damaged, *done.broken]:
        print(f"  {line}")
    print(f"{done.samples:,} samples, {len(done.broken):,} broken, in {done.seconds:.1f} s")
    return 0
