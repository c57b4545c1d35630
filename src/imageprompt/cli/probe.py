"""`imageprompt probe`: what each site of a base carries of a reference."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imageprompt.cli import flags
from imageprompt.core import bundled
from imageprompt.core.console import (
    Parser,
    add_json,
    describe,
    json_text,
    note,
    print_json,
    print_lines,
    print_text,
    provided,
    wants_progress,
)
from imageprompt.core.errors import OptionError

if TYPE_CHECKING:
    from imageprompt.evaluation.probing import ProbeResult

MAX_COUNT = 1000
_SAMPLING = ("seed", "steps", "guidance_scale", "size", "batch_size")
_REFERENCE = ("adapter", "variant", "encoder", "faces")
_MODELS = ("base", "dtype", "device")


def add_probe(command: Parser) -> None:
    from imageprompt.generation.reference import Reference
    from imageprompt.generation.request import Request

    describe(
        command,
        _probe,
        "imageprompt probe",
        "imageprompt probe --count 96 --output probed",
        'imageprompt probe --reference a.jpg --reference b.jpg --prompt "a cat" --seeds 4 \\',
        "    --base ./stable-diffusion-v1-5 --adapter ip-adapter-plus_sd15.safetensors",
    )

    def add(flag: str, help_: str, **more: Any) -> None:
        what.add_argument(flag, help=help_, default=argparse.SUPPRESS, **more)

    what = command.add_argument_group("what to generate")
    flags.add_options(what, Reference, ("reference",))
    add("--count", "number of drawn references, without --reference (24)", type=int, metavar="N")
    add(
        "--prompt",
        "text beside all references; or repeated, one for each (default: none)",
        action="append",
        metavar="TEXT",
    )
    add("--scale", "at the sites that are on, 0..2 (default 1)", type=float, metavar="S")
    add("--sites", "each attention layer alone, not each transformer", action="store_true")
    add("--seeds", "pictures of each reference (default 1)", type=int, metavar="N")
    flags.add_options(command.add_argument_group("sampling"), Request, _SAMPLING)
    models = command.add_argument_group("models")
    flags.add_options(models, Reference, _REFERENCE)
    flags.add_options(models, Request, _MODELS)
    command.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="write probe.png, probe.json, and style.json and layout.json for --scale",
    )
    add_json(command)


def _probe(options: argparse.Namespace) -> int:
    from imageprompt.core.atomic_files import check_folder
    from imageprompt.evaluation.probing import probe

    output = None if options.output is None else check_folder(options.output)
    arguments = provided(
        options, "prompt", "scale", "sites", "seeds", *_SAMPLING, *_REFERENCE, *_MODELS
    )
    if "reference" in options:
        if "count" in options:
            raise OptionError(
                "--count with --reference",
                reason="counts drawn references",
                hint="Give one of them.",
            )
        arguments["references"] = options.reference
    else:
        arguments = _drawn(options) | arguments
    progress = wants_progress(options)
    log = None if options.json else note
    result = probe(**arguments, log=log, progress=progress)
    print_json(result.as_dict()) if options.json else print_text(result)
    if output is not None:
        paths = _write(result, output)
        if not options.json:
            print_lines("", *paths)
    return 0


def _drawn(options: argparse.Namespace) -> dict[str, Any]:
    """For stacks of small scenes: drawn references, texts that contradict them, a judge of both."""
    from imageprompt.demo import judge
    from imageprompt.demo.datasets import REFERENCE_COUNT, draw_references

    if getattr(options, "base", bundled.NAME) not in bundled.ONE_OBJECT:
        raise OptionError(
            "no reference",
            reason=f"drawn references suit {' and '.join(bundled.ONE_OBJECT)} only",
            hint="Give pictures of a kind that the base generates: --reference PIC, repeated.",
        )
    count = getattr(options, "count", REFERENCE_COUNT)
    if not 1 <= count <= MAX_COUNT:
        raise OptionError(f"count {count}", reason=f"not a whole number from 1 to {MAX_COUNT}")
    drawn = draw_references(count)
    expected = drawn.expected if "prompt" not in options else None
    arguments = {"references": drawn.pictures, "prompt": drawn.texts, "batch_size": 16}
    return arguments | {"classify": judge.classify, "expected": expected}


def _write(result: ProbeResult, folder: Path) -> list[Path]:
    """Write the picture, the report, and a scale for each confirmed role."""
    from imageprompt.core.atomic_files import write_atomically
    from imageprompt.evaluation.probing.sheet import draw_sheet

    folder.mkdir(parents=True, exist_ok=True)
    texts = {"probe": result.as_dict(), **result.confirmed}
    paths = [folder / "probe.png", *(folder / f"{name}.json" for name in texts)]
    with write_atomically(paths[0]) as temporary:
        draw_sheet(result).save(temporary, format="PNG", optimize=True)
    for path, data in zip(paths[1:], texts.values(), strict=True):
        with write_atomically(path) as temporary:
            temporary.write_text(f"{json_text(data)}\n", encoding="utf-8")
    return paths
