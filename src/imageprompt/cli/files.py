"""The commands about adapter files: inspect, validate, convert, diff."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from imageprompt.core.console import add_command, add_json, given, print_json, wants_progress
from imageprompt.core.errors import NotFoundError

WHOLE, PROBLEMS = 0, 1


def add_commands(commands: Any) -> None:
    """Add the four commands to the parser."""
    _add_inspect(commands)
    _add_validate(commands)
    _add_convert(commands)
    _add_diff(commands)


def _inspect(options: argparse.Namespace) -> int:
    from imageprompt.checkpoint.inspect import inspect

    report = inspect(options.file, **given(options, "deep", "base"))
    _print(options, report)
    return WHOLE if report.whole else PROBLEMS


def _validate(options: argparse.Namespace) -> int:
    from imageprompt.checkpoint.validate import validate

    _check_report(options)
    findings = validate(options.file, **given(options, "base", "encoder"))
    _print(options, findings)
    _keep(options, findings)
    return WHOLE if findings.ok else PROBLEMS


def _convert(options: argparse.Namespace) -> int:
    from imageprompt.checkpoint.convert import convert

    wishes = given(options, "to", "dtype", "variant", "base", "force")
    _check_report(options)
    done = convert(options.source, options.target, **wishes, progress=wants_progress(options))
    _print(options, done)
    _keep(options, done)
    return WHOLE


def _diff(options: argparse.Namespace) -> int:
    from imageprompt.checkpoint.diff import diff

    difference = diff(options.a, options.b, **given(options, "base"))
    _print(options, difference)
    return WHOLE if difference.same else PROBLEMS


def _add_inspect(commands: Any) -> None:
    command = add_command(
        commands,
        "inspect",
        _inspect,
        "what an adapter file is, whether it is whole, and how to load it",
        "imageprompt inspect ip-adapter-plus_sd15.safetensors",
        "imageprompt inspect output/checkpoint-2000 --json",
        "imageprompt inspect h94/IP-Adapter/models/ip-adapter_sd15.bin --deep",
    )
    _add_file(command, "file", "FILE|DIR|HUB")
    command.add_argument(
        "--deep",
        action="store_true",
        default=argparse.SUPPRESS,
        help="read the weights too: NaN, constant tensors, equal to the base's own (with --base)",
    )
    _add_base(command, "hold it against this base")
    add_json(command)
    _exit_codes(command, "0 a whole adapter, 1 it has problems, 2 no adapter")


def _add_validate(commands: Any) -> None:
    command = add_command(
        commands,
        "validate",
        _validate,
        "everything that is wrong with an adapter file, a line each",
        "imageprompt validate adapter.safetensors --base sd15",
        "imageprompt validate adapter.safetensors --base ./base --encoder ./image_encoder",
        "imageprompt validate adapter.bin --report report.json",
    )
    _add_file(command, "file", "FILE|DIR|HUB")
    _add_base(command, "does it fit this base, and was it trained?")
    command.add_argument(
        "--encoder",
        default=argparse.SUPPRESS,
        metavar="DIR",
        help="does it read what this image encoder makes? (a folder with config.json)",
    )
    _add_report(command)
    add_json(command)
    _exit_codes(command, "0 nothing is wrong, 1 there are findings, 2 it could not be checked")


def _add_convert(commands: Any) -> None:
    command = add_command(
        commands,
        "convert",
        _convert,
        "any adapter file or training checkpoint to the layout that a program reads",
        "imageprompt convert output/checkpoint-2000 adapter.safetensors",
        "imageprompt convert pytorch_model.bin adapter.safetensors --dtype float16",
        "imageprompt convert adapter.safetensors adapter.bin --to bin",
        "imageprompt convert flux.safetensors ip_adapter.safetensors --to xlabs",
    )
    _add_file(command, "source", "SRC")
    command.add_argument("target", metavar="DST", help="file to write: .safetensors or .bin")
    absent = argparse.SUPPRESS
    command.add_argument(
        "--to",
        default=absent,
        metavar="LAYOUT",
        help="standard, bin (standard, pickled), xlabs ... (default: standard)",
    )
    command.add_argument(
        "--dtype", default=absent, metavar="TYPE", help="float32, float16, bfloat16 (as it is)"
    )
    command.add_argument(
        "--variant",
        default=absent,
        metavar="NAME",
        help="settle what the tensors leave open, e.g. faceid-plus-v2 (inspect lists them)",
    )
    _add_base(command, "for a training checkpoint of a base of your own")
    command.add_argument(
        "--force",
        action="store_true",
        default=absent,
        help="write NaN, infinite and untrained weights too, and say so",
    )
    _add_report(command)
    add_json(command)


def _add_diff(commands: Any) -> None:
    command = add_command(
        commands,
        "diff",
        _diff,
        "which weights of two adapter files differ, whatever their layouts, and by how much",
        "imageprompt diff pytorch_model.bin adapter.safetensors",
        "imageprompt diff checkpoint-1000 checkpoint-2000 --json",
    )
    _add_file(command, "a", "A")
    _add_file(command, "b", "B")
    _add_base(command, "for training checkpoints of a base of your own")
    add_json(command)
    _exit_codes(command, "0 the same weights, 1 they differ, 2 one of them is no adapter")


def _add_file(command: argparse.ArgumentParser, name: str, shown: str) -> None:
    command.add_argument(
        name, metavar=shown, help="an adapter file, a training folder, or owner/repo/sub/file"
    )


def _add_base(command: argparse.ArgumentParser, help_: str) -> None:
    command.add_argument(
        "--base",
        default=argparse.SUPPRESS,
        metavar="DIR|FAMILY",
        help=f"{help_}: a pipeline's or denoiser's folder, or sd15, sdxl ...",
    )


def _add_report(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--report", type=Path, metavar="FILE.json", help="write the same as --json to a file"
    )


def _exit_codes(command: argparse.ArgumentParser, codes: str) -> None:
    command.epilog = f"{command.epilog}\n\nexit codes: {codes}"


def _print(options: argparse.Namespace, result: Any) -> None:
    if options.json:
        print_json(result.as_dict())
    else:
        print(result)


def _check_report(options: argparse.Namespace) -> None:
    """Before the work is done, not after it. Raises NotFoundError."""
    if options.report is not None and not options.report.parent.is_dir():
        raise NotFoundError(
            f"folder of --report {str(options.report)!r}",
            reason="there is no such folder",
            hint="Create it first.",
        )


def _keep(options: argparse.Namespace, result: Any) -> None:
    """Write the report that was asked for."""
    if options.report is None:
        return
    from imageprompt.core.atomic_files import write_atomically

    _check_report(options)
    with write_atomically(options.report) as temporary:
        text = json.dumps(result.as_dict(), ensure_ascii=False, indent=1)
        temporary.write_text(f"{text}\n", encoding="utf-8")
