"""The command `imageprompt train`: a config by example, told by --dry-run, trained, resumed."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from imageprompt.cli.flags import add_set
from imageprompt.core.console import add_command, add_json, print_json
from imageprompt.core.errors import OptionError

STOPPED_BY = 128  # plus the signal, as shells say it


def add_commands(commands: Any) -> None:
    """Add the command to the parser."""
    command = add_command(
        commands,
        "train",
        _train,
        "train an adapter on pictures with captions, and write it as a standard file",
        "imageprompt train --example tiny-base > config.yaml",
        "imageprompt train config.yaml --dry-run",
        "imageprompt train config.yaml",
        "imageprompt train config.yaml --resume",
        "imageprompt train config.yaml --set learning_rate=1e-5 --set drop.text=0.1",
        "torchrun --nproc-per-node 2 -m imageprompt train config.yaml",
    )
    add = command.add_argument
    add("config", nargs="?", type=Path, metavar="CONFIG.yaml", help="what is to be trained")
    add_set(command)
    add("--resume", action="store_true", help="go on from the newest checkpoint, if there is one")
    add(
        "--allow-changes",
        action="store_true",
        help="resume with another config, other data or another number of processes",
    )
    add("--dry-run", action="store_true", help="say what would be trained and what it takes")
    add("--example", metavar="NAME", help=f"write a commented config: {', '.join(_examples())}")
    add_json(command)
    command.epilog = (
        f"{command.epilog}\n\nexit codes: 0 trained, 2 an error, 143 stopped by SIGTERM and 130 by"
        " Ctrl-C after a\ncheckpoint (a second Ctrl-C stops at once)"
    )


def _train(options: argparse.Namespace) -> int:
    if options.example is not None:
        print(_example(options.example), end="")
        return 0
    if options.config is None:
        raise OptionError(
            "no config",
            reason="one is needed to train",
            hint="Write one with `imageprompt train --example tiny-base > config.yaml`.",
        )
    if options.dry_run:
        return _dry_run(options)
    from imageprompt.training.train import train

    result = train(
        options.config,
        options.set,
        resume=options.resume,
        allow_changes=options.allow_changes,
        progress=not options.json,
    )
    if int(os.environ.get("RANK", "0")) == 0:  # one of several processes speaks for all
        if options.json:
            print_json(result.as_dict())
        elif result.adapter is not None:
            print(result.adapter)
    return 0 if result.signal is None else STOPPED_BY + result.signal


def _dry_run(options: argparse.Namespace) -> int:
    from imageprompt.training.config.config import TrainingConfig
    from imageprompt.training.estimate import plan

    made = plan(TrainingConfig.load(options.config, options.set))
    if options.json:
        print_json(made.as_dict())
    else:
        print(made)
    return 0


def _folder() -> Path:
    return Path(__file__).parents[1] / "training" / "examples"


def _examples() -> list[str]:
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def _example(name: str) -> str:
    """The text of an example. Raises OptionError, which names the nearest."""
    from difflib import get_close_matches

    known = _examples()
    if name not in known:
        near = get_close_matches(name, known, n=1)
        raise OptionError(
            f"example {name!r}",
            reason=f"not one of {', '.join(known)}",
            hint=f"Did you mean {near[0]!r}?" if near else "Choose one of these.",
        )
    return (_folder() / f"{name}.yaml").read_text(encoding="utf-8")
