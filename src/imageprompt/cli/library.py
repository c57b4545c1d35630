"""The command `imageprompt library`: named styles, added once and used by name."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from imageprompt.cli import library_jobs as jobs
from imageprompt.cli.flags import ADAPTER, ENCODER, FACES, READING, Flag, add_flags
from imageprompt.core.console import Parser, add_command, add_json, examples

_BASE: Flag = ("--base", "PATH_OR_HUB_ID", {}, "only tells where those are (the bundled one)")


def add_commands(commands: Any) -> None:
    """Add `library` and its commands to the parser."""
    library = commands.add_parser(
        "library",
        help="styles by name: add references once, use them with --style NAME",
        description="Styles by name: add references once, use them with --style NAME.",
        epilog=examples(
            "imageprompt library add porcelain vase.jpg plate.jpg --tag blue --fusion average",
            'imageprompt generate --style porcelain --prompt "a teapot"',
            "imageprompt library list --sheet styles.png",
        ),
    )
    group = library.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    _add_add(group)
    _add_list(group)
    _add_show(group)
    _add_search(group)
    _add_mix(group)
    _add_files(group)


def _job(
    group: Any, name: str, run: Callable[[argparse.Namespace], int], help_: str, *lines: str
) -> argparse.ArgumentParser:
    job = add_command(group, name, run, help_, *(f"imageprompt library {line}" for line in lines))
    job.add_argument(
        "--library", metavar="DIR", help="its folder ($IMAGEPROMPT_LIBRARY, or in your data folder)"
    )
    add_json(job)
    return job


def _add_add(group: Any) -> None:
    job = _job(
        group,
        "add",
        jobs.add,
        "encode pictures and keep them as a style",
        "add porcelain vase.jpg",
        "add porcelain vase.jpg plate.jpg --tag blue --tag white --fusion average",
        "add film a.jpg b.jpg --weights 0.7,0.3 --framing pad --force",
        "add oil oil.jpg --base ./stable-diffusion-v1-5 \\",
    )
    job.epilog = (
        f"{job.epilog}\n      --adapter h94/IP-Adapter/models/ip-adapter-plus_sd15.safetensors"
    )
    job.add_argument("name", metavar="NAME", help="a file's name on every system")
    job.add_argument("pictures", metavar="PIC", nargs="*", help="its references")
    _add_new(job)
    add_flags(job.add_argument_group("how it is read"), READING)
    add_flags(job.add_argument_group("faces"), FACES)
    _add_models(job, *ENCODER)


def _add_list(group: Any) -> None:
    job = _job(
        group, "list", jobs.list_, "which styles there are", "list", "list --sheet styles.png"
    )
    job.add_argument("--tag", metavar="TAG", help="only those with this tag")
    job.add_argument("--sheet", type=Path, metavar="FILE.png", help="write them as one picture")


def _add_show(group: Any) -> None:
    job = _job(
        group,
        "show",
        jobs.show,
        "one style",
        "show porcelain",
        "show porcelain --thumbnail small.png",
    )
    job.add_argument("name", metavar="NAME")
    job.add_argument("--thumbnail", type=Path, metavar="FILE.png", help="write its small picture")


def _add_search(group: Any) -> None:
    job = _job(
        group,
        "search",
        jobs.search,
        "styles like a picture, or by name and tag",
        "search blue",
        "search photo.jpg --limit 3",
        'search "old porcelain" --text-encoder ./clip --encoder ./image_encoder',
    )
    job.add_argument("what", metavar="PIC_OR_TEXT")
    job.add_argument("--limit", type=int, metavar="N", help="how many (all)")
    job.add_argument(
        "--text-encoder",
        default=argparse.SUPPRESS,
        metavar="DIR",
        help="look for a text in the pictures too: a CLIP text model with projection, in one space "
        "with the image encoder",
    )
    _add_models(job, *ENCODER)


def _add_mix(group: Any) -> None:
    job = _job(
        group,
        "mix",
        jobs.mix,
        "keep the weighted mean of styles as a new one",
        "mix porcelain:0.6 film:0.4 --as faded",
        "mix porcelain film --as half --tag mix",
    )
    job.add_argument(
        "shares", type=_share, metavar="NAME[:WEIGHT]", nargs="+", help="styles (weight 1)"
    )
    job.add_argument("--as", dest="name", required=True, metavar="NAME", help="the new style")
    _add_new(job)
    _add_models(job)


def _add_files(group: Any) -> None:
    export = _job(
        group,
        "export",
        jobs.export,
        "write a style to a file",
        "export porcelain porcelain.safetensors",
    )
    export.add_argument("name", metavar="NAME")
    export.add_argument("file", metavar="FILE.safetensors")
    import_ = _job(
        group,
        "import",
        jobs.import_,
        "take in a style's file",
        "import porcelain.safetensors",
        "import porcelain.safetensors --as china",
    )
    import_.add_argument("file", metavar="FILE.safetensors")
    import_.add_argument("--as", dest="name", metavar="NAME", help="(the name that it came with)")
    for job in (export, import_):
        _add_force(job, "replace what is there")
    remove = _job(group, "remove", jobs.remove, "delete styles", "remove porcelain film")
    remove.add_argument("names", metavar="NAME", nargs="+")


def _add_new(job: argparse.ArgumentParser) -> None:
    job.add_argument("--tag", action="append", default=[], metavar="TAG", help="may be repeated")
    _add_force(job, "replace a style of this name")


def _add_force(job: argparse.ArgumentParser, help_: str) -> None:
    job.add_argument("--force", action="store_true", help=help_)


def _add_models(job: argparse.ArgumentParser, *flags: Flag) -> None:
    add_flags(job.add_argument_group("with which models"), (*ADAPTER, *flags, _BASE))


def _share(text: str) -> tuple[str, float]:
    """NAME or NAME:WEIGHT; no name has a colon."""
    name, colon, weight = text.rpartition(":")
    if not colon:
        return text, 1.0
    try:
        return name, float(weight)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME:0.6") from None
