"""`imageprompt train` and `build-cache`: train an adapter by a config; fill its cache."""

from __future__ import annotations

import argparse
import os
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from imageprompt.core.console import (
    Bars,
    Parser,
    add_json,
    describe,
    print_json,
    print_lines,
    print_text,
    wants_progress,
)
from imageprompt.core.errors import OptionError

if TYPE_CHECKING:
    from imageprompt.training.cache.build import CacheReport

SIGNAL = 128  # plus the number of the signal that stopped the run, as shells do

_EXAMPLES = Path(__file__).parents[1] / "training" / "examples"


def add_train(command: Parser) -> None:
    describe(
        command,
        _train,
        "imageprompt train --example tiny-base > config.yaml",
        "imageprompt train config.yaml --dry-run",
        "imageprompt train config.yaml",
        "imageprompt train config.yaml --resume",
        "imageprompt train config.yaml --set learning_rate=1e-5 --set drop.text=0.1",
        "torchrun --nproc-per-node 2 -m imageprompt train config.yaml",
        notes="exit codes: 0 trained, 2 an error, 143 stopped by SIGTERM and 130 by Ctrl-C after a"
        "\ncheckpoint (a second Ctrl-C stops at once)",
    )
    add = command.add_argument
    add("config", nargs="?", type=Path, metavar="CONFIG.yaml", help="the config of the run")
    _add_set(command)
    add("--resume", action="store_true", help="continue from the newest checkpoint, if any")
    add(
        "--allow-changes",
        action="store_true",
        help="resume with another config, other data or another number of processes",
    )
    add("--dry-run", action="store_true", help="print what would be trained and what it takes")
    names = _example_names()
    add("--example", metavar="NAME", help=f"print a commented config: {', '.join(names)}")
    add_json(command)


def _train(options: argparse.Namespace) -> int:
    if options.example is not None:
        print_text(_example(options.example))
        return 0
    if options.config is None:
        raise OptionError(
            "no config",
            reason="training needs one",
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
    if int(os.environ.get("RANK", "0")) == 0:  # one process prints for all
        if options.json:
            print_json(result.as_dict())
        elif result.adapter is not None:
            print_lines(result.adapter)
    return 0 if result.signal is None else SIGNAL + result.signal


def _dry_run(options: argparse.Namespace) -> int:
    from imageprompt.training.config.config import TrainingConfig
    from imageprompt.training.estimate import estimate_run

    estimate = estimate_run(TrainingConfig.load(options.config, options.set))
    print_json(estimate.as_dict()) if options.json else print_text(estimate)
    return 0


def _example_names() -> list[str]:
    return sorted(path.stem for path in _EXAMPLES.glob("*.yaml"))


def _example(name: str) -> str:
    """The text of an example. Raises OptionError that suggests the nearest name."""
    names = _example_names()
    if name not in names:
        near = get_close_matches(name, names, n=1)
        raise OptionError(
            f"example {name!r}",
            reason=f"not one of {', '.join(names)}",
            hint=f"Did you mean {near[0]!r}?" if near else "Choose one of these.",
        )
    return (_EXAMPLES / f"{name}.yaml").read_text(encoding="utf-8")


# ── build-cache ─────────────────────────────────────────────────────────────────────────────────


def add_build_cache(command: Parser) -> None:
    describe(
        command,
        _build_cache,
        "imageprompt build-cache config.yaml",
        "imageprompt build-cache config.yaml --set cache=features --dry-run",
        "imageprompt build-cache config.yaml --verify",
        "imageprompt build-cache config.yaml --ray auto",
        notes="It can be stopped and continued, and several can run at once: nothing is encoded"
        " twice.\n`imageprompt train` encodes what is missing by itself.",
    )
    add = command.add_argument
    add("config", type=Path, metavar="CONFIG.yaml", help="the config of the run")
    _add_set(command)
    add("--dry-run", action="store_true", help="print what is missing and the disk space it needs")
    add("--verify", action="store_true", help="read the whole cache; encode damaged parts again")
    add("--ray", metavar="ADDRESS", help="build it on a Ray cluster: HOST:PORT, or auto")
    add_json(command)


def _build_cache(options: argparse.Namespace) -> int:
    from imageprompt.training.cache.build import KIND_NAMES

    with Bars(wants_progress(options)) as bars:
        report = _cache_report(options, bars)
    if options.json:
        print_json(report.as_dict())
        return 0
    for kind, name in KIND_NAMES.items():
        if kind in report.existing:
            encoded, present = report.encoded.get(kind, 0), report.existing[kind]
            print_lines(f"{name}: {encoded:,} encoded, {present:,} already there")
    for line in [*report.damaged, *report.broken]:
        print_lines(f"  {line}")
    broken = len(report.broken)
    print_lines(f"{report.samples:,} samples, {broken:,} broken, in {report.seconds:.1f} s")
    return 0


def _cache_report(options: argparse.Namespace, bars: Bars) -> CacheReport:
    if options.ray is not None:
        from imageprompt.training.cache.ray_build import build_on_ray

        if options.verify or options.dry_run:
            raise OptionError("--ray", reason="goes with neither --verify nor --dry-run")
        return build_on_ray(options.config, options.set, options.ray, on_progress=bars.update)
    from imageprompt.training.cache.build import build_cache_for
    from imageprompt.training.config.config import TrainingConfig

    return build_cache_for(
        TrainingConfig.load(options.config, options.set),
        verify=options.verify,
        dry_run=options.dry_run,
        log=bars.log,
        on_progress=bars.update,
    )


def _add_set(command: argparse.ArgumentParser) -> None:
    """Changes to a config: `options.set` is a list of texts."""
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a key of the config; may be repeated",
    )
