"""The `imageprompt` command: reads arguments, calls the jobs, prints; loads torch only to work."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imageprompt import (
    cli_check,
    cli_faces,
    cli_files,
    cli_library,
    cli_prepare,
    cli_probe,
    cli_train,
)
from imageprompt.errors import ImagePromptError
from imageprompt.terminal import (
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
from imageprompt.version import __version__

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
        from imageprompt.demo.draw import draw_folder

        print(*draw_folder(options.draw, **given(options, "seed", "count")), sep="\n")
        return 0
    from imageprompt.demo import showcase

    wishes = given(options, "output", "seed", "count")
    showcase.run(**wishes, json=options.json, progress=wants_progress(options))
    return 0


def _generate(options: argparse.Namespace) -> int:
    from imageprompt.files import check_folder
    from imageprompt.generation import generate, repeat

    request = given(
        options,
        *("prompt", "reference", "base", "adapter", "encoder", "image_prompt", "scale", "seed"),
        *("num_images", "steps", "guidance_scale", "negative_prompt", "size", "dtype", "device"),
        "batch_size",
    )
    request["progress"] = wants_progress(options)
    output = check_folder(options.output)
    result = repeat(options.recipe, **request) if "recipe" in options else generate(**request)
    paths = result.save(output)
    if options.json:
        pictures = [
            {"path": str(path), "recipe": json.loads(recipe.to_json())}
            for path, recipe in zip(paths, result.recipes, strict=True)
        ]
        print_json({"pictures": pictures})
    else:
        print(*paths, sep="\n")
    return 0


def _hosts(options: argparse.Namespace) -> int:
    from imageprompt.hosts import HOSTS

    rows = [
        {
            "host": host.name,
            "base": spec.family,
            "sites": len(spec.sites),
            "text width": spec.text_width,
            "site widths": sorted({site.width for site in spec.sites}),
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
            "reads": variant.feature,
            "no picture": variant.null_rule,
            "what": variant.summary,
        }
        for variant in VARIANTS
    ]
    return print_table(rows, options.json)


def _doctor(options: argparse.Namespace) -> int:
    from imageprompt.doctor import examine

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
    _add_generate(commands)
    cli_library.add_commands(commands)
    cli_faces.add_commands(commands)
    cli_check.add_commands(commands)
    cli_probe.add_commands(commands)
    cli_files.add_commands(commands)
    cli_prepare.add_commands(commands)
    cli_train.add_commands(commands)
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


def _add_generate(commands: Any) -> None:
    command = add_command(
        commands,
        "generate",
        _generate,
        "pictures from reference pictures and words",
        'imageprompt generate --reference ref.png --prompt "a star" --num-images 4',
        "imageprompt generate --reference a.jpg --reference b.jpg --scale 1.0",
        "imageprompt generate --reference cat.jpg --prompt hat --base ./stable-diffusion-v1-5 \\",
        "    --adapter h94/IP-Adapter/models/ip-adapter-plus_sd15.safetensors",
        "imageprompt generate --recipe outputs/0001.png",
        "imageprompt generate --recipe outputs/0001.png --scale 0.4",
    )
    # what is not given stays out of the namespace: the defaults are generate()'s, or the recipe's

    def add(group: Any, flag: str, help_: str, **options: Any) -> None:
        group.add_argument(flag, help=help_, default=argparse.SUPPRESS, **options)

    what = command.add_argument_group("what to show")
    add(what, "--reference", "reference picture; may be repeated", action="append", metavar="PIC")
    add(what, "--image-prompt", "a saved image prompt instead of references", metavar="FILE")
    add(what, "--prompt", "words beside the picture (default: none)", metavar="TEXT")
    add(what, "--negative-prompt", "words to keep away from", metavar="TEXT")
    add(what, "--scale", "how much of the picture, 0..2 (0.8)", type=float, metavar="S")
    add(what, "--recipe", "repeat a picture; other flags change it", metavar="PIC.png")
    how = command.add_argument_group("how many, how large")
    add(how, "--num-images", "pictures to make (1)", type=int, metavar="N")
    add(how, "--seed", "picture i is drawn from N + i (1)", type=int, metavar="N")
    add(how, "--steps", "denoising steps (the base's default)", type=int, metavar="N")
    add(how, "--guidance-scale", "(the base's default)", type=float, metavar="G")
    add(how, "--size", "in pixels (the base's default)", type=_size, metavar="WxH")
    add(how, "--batch-size", "pictures side by side (4)", type=int, metavar="N")
    with_ = command.add_argument_group("with which models")
    add(with_, "--base", "diffusers pipeline (the bundled one)", metavar="PATH_OR_HUB_ID")
    add(with_, "--adapter", "file, or base | plus of the bundled stack", metavar="FILE_OR_HUB_ID")
    add(with_, "--encoder", "image encoder (that of base or adapter)", metavar="PATH_OR_HUB_ID")
    add(with_, "--dtype", "float32, float16, bfloat16", metavar="TYPE")
    add(with_, "--device", "cpu, cuda, cuda:N, mps", metavar="NAME")
    command.add_argument(
        "--output", default="outputs", metavar="DIR", help="folder for the pictures (outputs)"
    )
    add_json(command)


def _size(text: str) -> tuple[int, int]:
    width, cross, height = text.lower().partition("x")
    if not (cross and width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form WxH, such as 512x512")
    return int(width), int(height)


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
