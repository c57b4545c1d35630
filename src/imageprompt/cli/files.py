"""`imageprompt inspect`, `validate`, `convert` and `diff`: the commands for adapter files."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from imageprompt.cli import flags
from imageprompt.core.console import (
    Parser,
    add_json,
    describe,
    json_text,
    print_json,
    print_text,
    provided,
    wants_progress,
)
from imageprompt.core.errors import NotFoundError, OptionError

GOOD, PROBLEMS = 0, 1


def add_inspect(command: Parser) -> None:
    describe(
        command,
        _inspect,
        "imageprompt inspect ip-adapter-plus_sd15.safetensors",
        "imageprompt inspect output/checkpoint-2000 --json",
        "imageprompt inspect h94/IP-Adapter/models/ip-adapter_sd15.bin --deep",
        notes="exit codes: 0 a complete adapter, 1 an adapter with problems, 2 not an adapter",
    )
    _add_file(command, "file", "FILE|DIR|HUB")
    command.add_argument(
        "--deep",
        action="store_true",
        default=argparse.SUPPRESS,
        help="read the weights too: NaN, constant tensors, equal to those of --base",
    )
    flags.add_base(command, "compare the adapter with this base")
    add_json(command)


def _inspect(options: argparse.Namespace) -> int:
    from imageprompt.checkpoint.inspect import inspect

    report = inspect(options.file, **provided(options, "deep", "base"))
    _print(options, report)
    return GOOD if report.ok else PROBLEMS


def add_validate(command: Parser) -> None:
    describe(
        command,
        _validate,
        "imageprompt validate adapter.safetensors --base sd15",
        "imageprompt validate adapter.safetensors --base ./base --encoder ./image_encoder",
        "imageprompt validate adapter.bin --report report.json",
        notes="exit codes: 0 nothing is wrong, 1 something is wrong, 2 it could not be checked",
    )
    _add_file(command, "file", "FILE|DIR|HUB")
    flags.add_base(command, "check that the adapter fits this base and was trained")
    command.add_argument(
        "--encoder",
        default=argparse.SUPPRESS,
        metavar="DIR",
        help="check that the adapter fits this image encoder: a folder with config.json",
    )
    _add_report(command)
    add_json(command)


def _validate(options: argparse.Namespace) -> int:
    from imageprompt.checkpoint.validate import validate

    _check_report(options)
    findings = validate(options.file, **provided(options, "base", "encoder"))
    _print(options, findings)
    _write_report(options, findings)
    return GOOD if findings.ok else PROBLEMS


def add_convert(command: Parser) -> None:
    describe(
        command,
        _convert,
        "imageprompt convert output/checkpoint-2000 adapter.safetensors",
        "imageprompt convert pytorch_model.bin adapter.safetensors --dtype float16",
        "imageprompt convert adapter.safetensors adapter.bin --to bin",
        "imageprompt convert flux.safetensors ip_adapter.safetensors --to xlabs",
    )
    _add_file(command, "source", "SRC")
    add, absent = command.add_argument, argparse.SUPPRESS
    add("target", metavar="DST", help="file to write: .safetensors or .bin")
    add(
        "--to",
        default=absent,
        metavar="LAYOUT",
        help="standard (default), bin (standard, pickled), xlabs ...",
    )
    add(
        "--dtype",
        default=absent,
        metavar="TYPE",
        help="float32, float16, bfloat16, or int8 for imageprompt alone (default: unchanged)",
    )
    add(
        "--variant",
        default=absent,
        metavar="NAME",
        help="variant if the tensors fit several, e.g. faceid-plus-v2 (inspect lists them)",
    )
    flags.add_base(command, "for a training checkpoint of a base that is not published")
    add(
        "--renumber",
        action="store_true",
        default=absent,
        help="give sites that were counted 0, 1, 2, ... or 0, 2, 4, ... the ids of their base",
    )
    add("--overwrite", action="store_true", default=absent, help="replace DST if it exists")
    add(
        "--force",
        action="store_true",
        default=absent,
        help="write NaN, infinite and untrained weights too (and replace DST)",
    )
    _add_report(command)
    add_json(command)


def _convert(options: argparse.Namespace) -> int:
    from imageprompt.checkpoint.convert import convert

    _check_report(options)
    arguments = provided(
        options, "to", "dtype", "variant", "base", "renumber", "overwrite", "force"
    )
    conversion = convert(
        options.source, options.target, **arguments, progress=wants_progress(options)
    )
    _print(options, conversion)
    _write_report(options, conversion)
    return GOOD


def add_diff(command: Parser) -> None:
    describe(
        command,
        _diff,
        "imageprompt diff pytorch_model.bin adapter.safetensors",
        "imageprompt diff checkpoint-1000 checkpoint-2000 --json",
        notes="exit codes: 0 the same weights, 1 different weights, 2 not two adapters",
    )
    _add_file(command, "a", "A")
    _add_file(command, "b", "B")
    flags.add_base(command, "for training checkpoints of a base that is not published")
    add_json(command)


def _diff(options: argparse.Namespace) -> int:
    from imageprompt.checkpoint.diff import diff

    difference = diff(options.a, options.b, **provided(options, "base"))
    _print(options, difference)
    return GOOD if difference.same else PROBLEMS


# ── arguments and reports ───────────────────────────────────────────────────────────────────────


def _add_file(command: Parser, name: str, metavar: str) -> None:
    command.add_argument(
        name, metavar=metavar, help="an adapter file, a training folder, or owner/repo/sub/file"
    )


def _add_report(command: Parser) -> None:
    command.add_argument(
        "--report", type=Path, metavar="FILE.json", help="write the --json output to a file"
    )


def _print(options: argparse.Namespace, result: Any) -> None:
    if options.json:
        print_json(result.as_dict())
    else:
        print_text(result)


def _check_report(options: argparse.Namespace) -> None:
    """Before the work starts. Raises NotFoundError, OptionError."""
    if options.report is not None and not options.report.parent.is_dir():
        raise NotFoundError(
            f"folder of --report {str(options.report)!r}",
            reason="no such folder",
            hint="Create it first.",
        )
    if options.report is not None and options.report.exists() and not options.report.is_file():
        raise OptionError(
            f"--report {str(options.report)!r}",
            reason="a folder, pipe or device stands in its place",
            hint="Choose another name.",
        )


def _write_report(options: argparse.Namespace, result: Any) -> None:
    if options.report is None:
        return
    from imageprompt.core.atomic_files import write_atomically

    _check_report(options)
    with write_atomically(options.report) as temporary:
        temporary.write_text(f"{json_text(result.as_dict())}\n", encoding="utf-8")
