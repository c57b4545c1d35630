"""`imageprompt generate`: flags become the arguments of `generate` and `repeat`."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from imageprompt.cli import flags
from imageprompt.core.console import (
    Bars,
    Parser,
    add_json,
    describe,
    print_json,
    print_lines,
    provided,
    wants_progress,
)
from imageprompt.generation.option_values import REFERENCES
from imageprompt.generation.reference import REFERENCE_FIELDS, Reference
from imageprompt.generation.request import REQUEST_FIELDS, Request

if TYPE_CHECKING:
    from pathlib import Path

    from imageprompt.generation.result import GenerationResult
    from imageprompt.loading.recipe import Recipe


class _Also(argparse.Action):
    """Sets the flags of the reference so far aside and starts another reference."""

    def __call__(
        self,
        _: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        __: Any,
        ___: str | None = None,
    ) -> None:
        reference = provided(namespace, *REFERENCE_FIELDS)
        for name in reference:
            delattr(namespace, name)
        namespace.before = [*getattr(namespace, "before", []), reference]


def add_generate(command: Parser) -> None:
    describe(
        command,
        _generate,
        'imageprompt generate --reference ref.png --prompt "a star" --num-images 4',
        "imageprompt generate --reference a.jpg --preset style --schedule 0-0.6",
        "imageprompt generate --reference a.jpg --mask l.png --reference b.jpg --mask r.png",
        "imageprompt generate --reference a.jpg --also --reference b.jpg --adapter base",
        "imageprompt generate --reference a.jpg --init-image room.jpg --strength 0.6",
        "imageprompt generate --reference cat.jpg --prompt hat --base ./stable-diffusion-v1-5 \\",
        "    --adapter h94/IP-Adapter/models/ip-adapter-plus_sd15.safetensors",
        "imageprompt generate --recipe outputs/0001.png --scale 0.4",
    )
    last = ""
    for kind in (Reference, Request):
        for title, fields in flags.by_group(kind):
            group = command.add_argument_group(title)
            for field in fields:
                flags.add_option(group, field, once=kind is Reference)
            last = title if kind is Reference else last
            if title == REFERENCES:
                also = group.add_argument(
                    "--also", action=_Also, nargs=0, default=argparse.SUPPRESS
                )
    also.help = f"starts another reference; the flags down to '{last}' after it apply to it"
    exported = command.add_argument_group("runtime")
    exported.add_argument(
        "--runtime",
        metavar="NAME",
        default=argparse.SUPPRESS,
        help="openvino, onnxruntime, aoti, pt2 or executorch, instead of PyTorch (default: the "
        "folder's)",
    )
    exported.add_argument(
        "--exported",
        metavar="DIR",
        default=argparse.SUPPRESS,
        help="what it computes: a folder of `imageprompt export`",
    )
    files = command.add_argument_group("recipe and output")
    files.add_argument(
        "--recipe",
        metavar="PIC.png",
        default=argparse.SUPPRESS,
        help="make a picture again from its recipe; other flags change it",
    )
    files.add_argument(
        "--output", default="outputs", metavar="DIR", help="folder (default %(default)s)"
    )
    add_json(command)
    command.usage = f"{command.prog} [--reference PIC ...] [--prompt TEXT] [flags]"


def _generate(options: argparse.Namespace) -> int:
    from imageprompt import generation
    from imageprompt.core.atomic_files import check_folder

    arguments = _arguments(options)
    output = check_folder(options.output)
    saved: list[tuple[Path, Recipe]] = []

    def save(finished: GenerationResult) -> None:
        saved.extend(zip(finished.save(output), finished.recipes, strict=True))

    maker: Any = generation
    if runtime := provided(options, "runtime", "exported"):
        from imageprompt.generation.engine import Engine

        own = {name: arguments.pop(name) for name in ("base", "dtype", "device") & arguments.keys()}
        maker = Engine(**own, **runtime)
    try:
        with Bars(wants_progress(options)) as bars:
            arguments |= {"progress": False, "on_progress": bars.update, "on_image": save}
            if "recipe" in options:
                maker.repeat(options.recipe, **arguments)
            else:
                maker.generate(**arguments)
    finally:  # after an interruption too: what is saved is kept
        _print(options, saved)
    return 0


def _print(options: argparse.Namespace, saved: list[tuple[Path, Recipe]]) -> None:
    if options.json and saved:
        pictures = [
            {"path": str(path), "recipe": json.loads(recipe.to_json())} for path, recipe in saved
        ]
        print_json({"pictures": pictures})
    elif saved:
        print_lines(*(path for path, _ in saved))


def _arguments(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of generate(), or the changes to a recipe."""
    before: list[dict[str, Any]] = getattr(options, "before", [])
    first, *others = [*before, provided(options, *REFERENCE_FIELDS)]
    arguments = provided(options, *REQUEST_FIELDS) | first
    return arguments | ({"also": [Reference(**other) for other in others]} if others else {})
