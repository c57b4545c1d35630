"""The `imageprompt` command: reads arguments, calls the jobs, prints; loads torch only to work."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imageprompt.cli import check, faces, files, generate, library, prepare, presets, probe, train
from imageprompt.core.console import (
    PROGRAM,
    USAGE_ERROR,
    Parser,
    add_command,
    add_json,
    examples,
    given,
    print_aligned,
    print_json,
    print_table,
    shown,
    wants_progress,
)
from imageprompt.core.errors import ImagePromptError
from imageprompt.core import __version__

INTERRUPTED = 128 + signal.SIGINT
BROKEN_PIPE = 128 + 13  # SIGPIPE, which not every platform has


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code. Every error a user can cause is one line."""
    try:
        options = _parser().parse_args(arguments)
        _settle()
        code: int = options.run(options)
        sys.stdout.flush()
        return code
    except ImagePromptError as error:
        return _fail(str(error))
    except BrokenPipeError:
        # the reader has left; nothing must be flushed into the pipe at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except OSError as error:  # a full disk, a folder that went away: the system's own words
        return _fail(" ".join(str(error).split()))
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted", file=sys.stderr)
        return INTERRUPTED


def _fail(message: str) -> int:
    print(f"{PROGRAM}: error: {message}", file=sys.stderr)
    return USAGE_ERROR


# ── commands ────────────────────────────────────────────────────────────────────────────────────


def _demo(options: argparse.Namespace) -> int:
    if "draw" in options:
        from imageprompt.demo.scenes import draw_folder

        print(*draw_folder(options.draw, **given(options, "seed", "count")), sep="\n")
        return 0
    from imageprompt.demo import showcase

    wishes = given(options, "output", "seed", "count")
    showcase.run(**wishes, json=options.json, progress=wants_progress(options))
    return 0


def _hosts(options: argparse.Namespace) -> int:
    from imageprompt.hosts import HOSTS

    rows = [
        {
            "host": host.name,
            "base": spec.family,
            "sites": len(spec.sites),
            "text width": spec.cross_attention_dim,
            "site widths": sorted({site.inner_dim for site in spec.sites}),
            "use": "generate, train, files" if host.attachable else "files",
        }
        for host in HOSTS
        for spec in host.families()
    ]
    return print_table(rows, options.json)


def _variants(options: argparse.Namespace) -> int:
    from imageprompt.variants import VARIANTS

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


def _doctor(options: argparse.Namespace) -> int:
    from imageprompt.cli.doctor import examine

    report = examine(self_test=not options.quick)
    if options.json:
        print_json(report)
    else:
        for part, found in report.items():
            if isinstance(found, dict):
                print(part)
                print_aligned((name, shown(value)) for name, value in found.items())
        print("all well" if report["ok"] else "something is wrong: see above")
    return 0 if report["ok"] else 1


# ── arguments ───────────────────────────────────────────────────────────────────────────────────


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=PROGRAM,
        description="Image prompts for diffusion models: pictures from pictures and words.",
        epilog=examples(
            "imageprompt demo",
            'imageprompt generate --reference cat.jpg --prompt "in the snow" --num-images 4',
            "imageprompt generate --recipe outputs/0001.png",
            "imageprompt inspect adapter.safetensors",
        ),
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    _add_demo(commands)
    generate.add_commands(commands)
    library.add_commands(commands)
    faces.add_commands(commands)
    check.add_commands(commands)
    presets.add_commands(commands)
    probe.add_commands(commands)
    files.add_commands(commands)
    prepare.add_commands(commands)
    train.add_commands(commands)
    for name, run, help_ in (
        ("hosts", _hosts, "which base architectures are known"),
        ("variants", _variants, "which adapter architectures are known"),
    ):
        table = add_command(
            commands, name, run, help_, f"imageprompt {name}", f"imageprompt {name} --json"
        )
        add_json(table)
    doctor = add_command(
        commands,
        "doctor",
        _doctor,
        "versions, devices, what is installed, and a self-test",
        "imageprompt doctor",
        "imageprompt doctor --quick --json",
    )
    doctor.add_argument("--quick", action="store_true", help="without the self-test")
    add_json(doctor)
    return parser


def _add_demo(commands: Any) -> None:
    demo = add_command(
        commands,
        "demo",
        _demo,
        "draw references, generate with them on the bundled stack, show it all on one sheet",
        "imageprompt demo",
        "imageprompt demo --output sheet --seed 7",
        "imageprompt demo --draw scenes --count 4000",
    )
    add = demo.add_argument
    absent = argparse.SUPPRESS
    add("--output", type=Path, metavar="DIR", default=absent, help="folder (outputs/demo)")
    add("--seed", type=int, metavar="N", default=absent, help="which references are drawn (1)")
    add("--count", type=int, metavar="N", default=absent, help="how many references (6)")
    add(
        "--draw",
        type=Path,
        metavar="DIR",
        default=absent,
        help="draw scenes with captions to train on (--count of them, 4000), and held-out ones",
    )
    add_json(demo)


# ── output ──────────────────────────────────────────────────────────────────────────────────────


def _settle() -> None:
    """Warnings as one line each, without the libraries' notes to developers; patient threads."""

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        print(f"{PROGRAM}: warning: {' '.join(str(message).split())}", file=sys.stderr)

    # Read when torch is first loaded: its threads sleep instead of spinning while they wait for one
    # another, which costs nothing here and a factor of five on a machine that is busy otherwise.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    warnings.showwarning = show
    warnings.simplefilter("ignore", FutureWarning)
    # transformers says on import that torchvision is not there; nothing here needs it
    logging.getLogger("transformers.utils.import_utils").addFilter(_matters)


def _matters(record: logging.LogRecord) -> bool:
    return "torchvision" not in record.getMessage()
