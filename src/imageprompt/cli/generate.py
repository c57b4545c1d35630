"""The command `imageprompt generate`: flags become the arguments of generate() and repeat()."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from imageprompt.cli import flags
from imageprompt.cli.flags import Flag, again, of
from imageprompt.core.console import (
    add_command,
    add_json,
    given,
    parse_size,
    print_json,
    wants_progress,
)
from imageprompt.generation.reference import NAMES, Reference
from imageprompt.generation.request import ARGUMENTS


def _scale(text: str) -> Any:
    """`0.8`, `style=1,layout=0.2`, ComfyUI's `3:1.0,6:0.5`, JSON or a file of it: dictionaries."""
    if text.endswith(".json"):  # `imageprompt probe --output` writes such
        try:
            text = Path(text).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise argparse.ArgumentTypeError(f"{text!r} cannot be read ({error})") from None
    if text.lstrip().startswith(("{", "[")):
        return _json(text)
    if "=" in text:
        return _by_site(text)
    return text if ":" in text else _number(text)


def _by_site(text: str) -> dict[str, float]:
    made: dict[str, float] = {}
    for part in text.split(","):
        site, _, value = (word.strip() for word in part.partition("="))
        if site in made:
            raise argparse.ArgumentTypeError(f"{text!r} names {site!r} twice")
        made[site] = _number(value)
    return made


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON ({error})") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number, nor such as style=1,layout=0.2"
        ) from None


def _branches(text: str) -> str | list[str]:
    return text.split(",") if "," in text else text


WHAT: tuple[Flag, ...] = (
    ("--reference", "PIC", again(), "reference picture; may be repeated"),
    ("--style", "NAME", {}, "a style of the library instead (see `imageprompt library`)"),
    ("--image-prompt", "FILE", {}, "a saved image prompt instead"),
    *flags.ADAPTER,
    *flags.ENCODER,
)
WHERE: tuple[Flag, ...] = (
    (
        "--scale",
        "S",
        of(_scale),
        "0..2 (0.8); or by site: style=1,layout=0.2; 3:1.0,6:0.5; JSON; FILE.json",
    ),
    ("--preset", "NAME", {}, "what to take: style, composition ... (see `imageprompt presets`)"),
    ("--composition", "C", of(float), "of the preset 'style and composition', 0..2"),
    ("--boost", "B", of(float), "of the precise presets, 0..2"),
    ("--schedule", "WHEN", {}, '"0-0.4", "0.1-0.8 ease-out", "1,0.8,0.5,0"'),
    ("--mask", "PIC", again(), "white: where it acts; as often as --reference: each its own"),
    ("--scaling", "HOW", {}, '"V only", "K+V", "K+V w/ C penalty", "K+mean(V) w/ C penalty"'),
    ("--lora", "S", of(float), "how strongly a FaceID adapter's LoRA acts, 0..2 (1)"),
)
FACES: tuple[Flag, ...] = (
    *flags.FACES,
    ("--lora-mode", "MODE", {}, "live, or merged into the base's weights meanwhile (live)"),
)
WORDS: tuple[Flag, ...] = (
    ("--prompt", "TEXT", {}, "words beside the picture (default: none)"),
    ("--negative-prompt", "TEXT", {}, "words to keep away from"),
)
START: tuple[Flag, ...] = (
    ("--init-image", "PIC", {}, "the picture to start from"),
    ("--strength", "S", of(float), "how much of it changes, 0..1 (the base's default)"),
    ("--inpaint-mask", "PIC", {}, "white: where it changes"),
    ("--controlnet", "PATH_OR_HUB_ID", {}, "a diffusers ControlNet"),
    ("--control-image", "PIC", {}, "what it reads: edges, depth ..."),
    ("--control-scale", "S", of(float), "how strongly, 0..2 (1)"),
)
NUMBERS: tuple[Flag, ...] = (
    ("--num-images", "N", of(int), "pictures to make (1)"),
    ("--seed", "N", of(int), "picture i is drawn from N + i (1)"),
    ("--steps", "N", of(int), "denoising steps (the base's default)"),
    ("--guidance-scale", "G", of(float), "(the base's default)"),
    ("--guidance", "HOW", of(_branches), "of bases that stack it otherwise: positive,negative"),
    ("--size", "WxH", of(parse_size), "in pixels (the base's default)"),
    ("--batch-size", "N", of(int), "pictures side by side (4)"),
)
MODELS: tuple[Flag, ...] = (
    ("--base", "PATH_OR_HUB_ID", {}, "diffusers pipeline (the bundled one)"),
    ("--library", "DIR", {}, "where styles are ($IMAGEPROMPT_LIBRARY, or your data folder)"),
    ("--dtype", "TYPE", {}, "float32, float16, bfloat16"),
    ("--device", "NAME", {}, "cpu, cuda, cuda:N, mps"),
)
GROUPS = {
    "what to show": WHAT,
    "what to take from it, where and when": WHERE,
    "how it is read": flags.READING,
    "faces": FACES,
    "words": WORDS,
    "what to start from": START,
    "how many, how large": NUMBERS,
    "with which models": MODELS,
}
OF_A_REFERENCE = (WHAT, WHERE, flags.READING, FACES)
"""Where a second value may be meant for a further reference."""


class _Also(argparse.Action):
    """Puts the reference's flags so far aside and begins another one."""

    def __call__(
        self,
        _: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        __: Any,
        ___: str | None = None,
    ) -> None:
        found = given(namespace, *NAMES)
        for name in found:
            delattr(namespace, name)
        namespace.before = [*getattr(namespace, "before", []), found]


def add_commands(commands: Any) -> None:
    """Add `generate` to the parser."""
    command = add_command(
        commands,
        "generate",
        _generate,
        "pictures from reference pictures and words",
        'imageprompt generate --reference ref.png --prompt "a star" --num-images 4',
        "imageprompt generate --reference a.jpg --preset style --schedule 0-0.6",
        "imageprompt generate --reference a.jpg --mask l.png --reference b.jpg --mask r.png",
        "imageprompt generate --reference a.jpg --also --reference b.jpg --adapter base",
        "imageprompt generate --reference a.jpg --init-image room.jpg --strength 0.6",
        "imageprompt generate --reference cat.jpg --prompt hat --base ./stable-diffusion-v1-5 \\",
        "    --adapter h94/IP-Adapter/models/ip-adapter-plus_sd15.safetensors",
        "imageprompt generate --recipe outputs/0001.png --scale 0.4",
    )
    for title, flags_of_it in GROUPS.items():
        group = command.add_argument_group(title)
        flags.add_flags(group, flags_of_it, once=flags_of_it in OF_A_REFERENCE)
        if title == "what to show":
            group.add_argument(
                "--also",
                action=_Also,
                nargs=0,
                default=argparse.SUPPRESS,
                help="begins a further reference: the flags after it, down to 'faces', are its own",
            )
    repeat = command.add_argument_group("again")
    repeat.add_argument(
        "--recipe",
        metavar="PIC.png",
        default=argparse.SUPPRESS,
        help="repeat a picture; other flags change it",
    )
    command.add_argument(
        "--output", default="outputs", metavar="DIR", help="folder for the pictures (outputs)"
    )
    add_json(command)


def _generate(options: argparse.Namespace) -> int:
    from imageprompt.core.atomic_files import check_folder
    from imageprompt.generation import generate, repeat

    request = _arguments(options)
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


def _arguments(options: argparse.Namespace) -> dict[str, Any]:
    """Of generate(), or what of the recipe is changed."""
    before: list[dict[str, Any]] = getattr(options, "before", [])
    first, *others = [*before, given(options, *NAMES)]
    request = given(options, *ARGUMENTS) | first | {"progress": wants_progress(options)}
    return request | ({"also": [Reference(**other) for other in others]} if others else {})
