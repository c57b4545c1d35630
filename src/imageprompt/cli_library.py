"""The command `imageprompt library`: named styles, added once and used by name."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imageprompt.errors import OptionError
from imageprompt.terminal import (
    Parser,
    add_command,
    add_json,
    examples,
    given,
    print_aligned,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from PIL import Image

    from imageprompt.library import Library, Style

# ── jobs ────────────────────────────────────────────────────────────────────────────────────────


def _add(options: argparse.Namespace) -> int:
    from imageprompt.library.bench import encoding_bench

    bench = encoding_bench(**given(options, "adapter", "encoder", "base", "variant"))
    style = _library(options).add(
        options.name,
        bench.adapter,
        options.pictures,
        tags=options.tag,
        replace=options.force,
        made_with=bench.made_with,
        **given(options, "fusion", "weights", "prepare", "noise", "negative"),
    )
    return _told(options, style)


def _list(options: argparse.Namespace) -> int:
    library = _library(options)
    styles = library.styles(options.tag)
    if options.sheet is not None and styles:
        from imageprompt.library.sheet import contact_sheet

        _write(contact_sheet(styles), options.sheet)
    if options.json:
        print_json([style.as_dict() for style in styles])
    elif styles:
        print_table([_row(style) for style in styles], as_json=False)
    else:
        which = "no styles" if options.tag is None else f"no styles with the tag {options.tag!r}"
        print(f"{which} in {library.folder}; `imageprompt library add` puts them there")
    return 0


def _show(options: argparse.Namespace) -> int:
    from imageprompt.library import thumbnail

    style = _library(options).show(options.name)
    if options.thumbnail is not None:
        small = thumbnail.read(style)
        if small is None:
            raise OptionError(f"style {style.name!r}", rule="it has no thumbnail")
        _write(small, options.thumbnail)
    return _told(options, style)


def _search(options: argparse.Namespace) -> int:
    from imageprompt.library.search import is_text

    wanted = given(options, "text_encoder")
    if not is_text(options.what) or wanted:
        from imageprompt.library.bench import encoding_bench

        bench = encoding_bench(**given(options, "adapter", "encoder", "base", "variant"))
        wanted["encoder"] = bench.adapter.encoder
    results = _library(options).search(options.what, limit=options.limit, **wanted)
    if options.json:
        print_json(results.as_dict())
        return 0
    if results.found:
        rows = [one.as_dict() | {"tags": one.style.tags} for one in results.found]
        print_table(rows, as_json=False)
    print(f"{len(results.found)} found; compared: {results.used}")
    if results.skipped:
        print(f"{len(results.skipped)} of other encoders: {', '.join(results.skipped)}")
    return 0


def _mix(options: argparse.Namespace) -> int:
    from imageprompt.library.bench import encoding_bench, projector_of

    library, weights = _library(options), dict(options.shares)
    if len(weights) < len(options.shares):
        raise OptionError("styles of a mix", rule="one of them is named twice")
    if named := given(options, "adapter", "encoder", "base", "variant"):
        adapter: Any = encoding_bench(**named).adapter
    else:
        adapter = projector_of(library.show(options.shares[0][0]))
    style = library.mix(weights, options.name, adapter, tags=options.tag, replace=options.force)
    return _told(options, style)


def _export(options: argparse.Namespace) -> int:
    path = _library(options).export(options.name, options.file, replace=options.force)
    print_json({"path": str(path)}) if options.json else print(path)
    return 0


def _import(options: argparse.Namespace) -> int:
    style = _library(options).import_(options.file, options.name, replace=options.force)
    return _told(options, style)


def _remove(options: argparse.Namespace) -> int:
    library = _library(options)
    for name in options.names:
        library.show(name)  # all are there, or none is removed
    for name in options.names:
        library.remove(name)
    print_json({"removed": options.names}) if options.json else print(*options.names, sep="\n")
    return 0


# ── output ──────────────────────────────────────────────────────────────────────────────────────


def _library(options: argparse.Namespace) -> Library:
    from imageprompt.library import Library

    return Library(options.library)


def _row(style: Style) -> dict[str, Any]:
    return {
        "style": style.name,
        "tags": style.tags,
        "variant": style.variant,
        "tokens": style.shape[0],
        "references": [one.name or "in memory" for one in style.references],
        "created": style.created[:10],
    }


def _told(options: argparse.Namespace, style: Style) -> int:
    """All that is known of one style."""
    if options.json:
        print_json(style.as_dict())
        return 0
    encoder = style.encoder
    said: dict[str, Any] = {
        **_row(style),
        "adapter": f"{style.adapter.name or 'unnamed'}, projector {style.adapter.hash}",
        "encoder": "none" if encoder is None else f"{encoder.name or 'unnamed'}, {encoder.hash}",
        "recipe": [f"{key} {value}" for key, value in style.recipe.items() if key != "hashes"],
        "hash": style.hash[:16],
        "file": str(style.path),
    }
    lists = {
        key: ", ".join(value) for key, value in said.items() if isinstance(value, list | tuple)
    }
    print_aligned([(key, str(value) or "-") for key, value in (said | lists).items()])
    return 0


def _write(picture: Image.Image, path: Path) -> None:
    from imageprompt.files import write_atomically

    if path.suffix.lower() not in (".png", ".jpg", ".jpeg") or not path.parent.is_dir():
        raise OptionError(
            f"picture file {str(path)!r}",
            rule="it ends in .png or .jpg, in a folder that is there",
            remedy="Name another one.",
        )
    with write_atomically(path) as temporary:
        picture.save(temporary)


# ── arguments ───────────────────────────────────────────────────────────────────────────────────


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
    jobs = library.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    _add_add(jobs)
    _add_list(jobs)
    _add_show(jobs)
    _add_search(jobs)
    _add_mix(jobs)
    _add_files(jobs)


def _job(
    jobs: Any, name: str, run: Callable[[argparse.Namespace], int], help_: str, *lines: str
) -> argparse.ArgumentParser:
    job = add_command(jobs, name, run, help_, *(f"imageprompt library {line}" for line in lines))
    job.add_argument(
        "--library", metavar="DIR", help="its folder ($IMAGEPROMPT_LIBRARY, or in your data folder)"
    )
    add_json(job)
    return job


def _add_add(jobs: Any) -> None:
    job = _job(
        jobs,
        "add",
        _add,
        "encode pictures and keep them as a style",
        "add porcelain vase.jpg",
        "add porcelain vase.jpg plate.jpg --tag blue --tag white --fusion average",
        "add film a.jpg b.jpg --weights 0.7,0.3 --prepare pad --force",
        "add oil oil.jpg --base ./stable-diffusion-v1-5 \\",
    )
    job.epilog = (
        f"{job.epilog}\n      --adapter h94/IP-Adapter/models/ip-adapter-plus_sd15.safetensors"
    )
    job.add_argument("name", metavar="NAME", help="a file's name on every system")
    job.add_argument("pictures", metavar="PIC", nargs="+", help="its references")
    _add_new(job)
    add = job.add_argument_group("how they are encoded").add_argument
    absent = argparse.SUPPRESS
    add("--fusion", default=absent, metavar="HOW", help="of several pictures: concat, average ...")
    add("--weights", default=absent, type=_numbers, metavar="A,B", help="one for each picture")
    add("--prepare", default=absent, metavar="HOW", help="squash, crop, crop:top, pad, tiles ...")
    add("--noise", default=absent, metavar="N", help="on the side without a picture, 0..1")
    add(
        "--negative-reference",
        dest="negative",
        default=absent,
        metavar="PIC",
        help="to move away from",
    )
    _add_models(job)


def _add_list(jobs: Any) -> None:
    job = _job(jobs, "list", _list, "which styles there are", "list", "list --sheet styles.png")
    job.add_argument("--tag", metavar="TAG", help="only those with this tag")
    job.add_argument("--sheet", type=Path, metavar="FILE.png", help="write them as one picture")


def _add_show(jobs: Any) -> None:
    job = _job(
        jobs, "show", _show, "one style", "show porcelain", "show porcelain --thumbnail small.png"
    )
    job.add_argument("name", metavar="NAME")
    job.add_argument("--thumbnail", type=Path, metavar="FILE.png", help="write its small picture")


def _add_search(jobs: Any) -> None:
    job = _job(
        jobs,
        "search",
        _search,
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
    _add_models(job)


def _add_mix(jobs: Any) -> None:
    job = _job(
        jobs,
        "mix",
        _mix,
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


def _add_files(jobs: Any) -> None:
    export = _job(
        jobs, "export", _export, "write a style to a file", "export porcelain porcelain.safetensors"
    )
    export.add_argument("name", metavar="NAME")
    export.add_argument("file", metavar="FILE.safetensors")
    import_ = _job(
        jobs,
        "import",
        _import,
        "take in a style's file",
        "import porcelain.safetensors",
        "import porcelain.safetensors --as china",
    )
    import_.add_argument("file", metavar="FILE.safetensors")
    import_.add_argument("--as", dest="name", metavar="NAME", help="(the name that it came with)")
    for job in (export, import_):
        _add_force(job, "replace what is there")
    remove = _job(jobs, "remove", _remove, "delete styles", "remove porcelain film")
    remove.add_argument("names", metavar="NAME", nargs="+")


def _add_new(job: argparse.ArgumentParser) -> None:
    job.add_argument("--tag", action="append", default=[], metavar="TAG", help="may be repeated")
    _add_force(job, "replace a style of this name")


def _add_force(job: argparse.ArgumentParser, help_: str) -> None:
    job.add_argument("--force", action="store_true", help=help_)


def _add_models(job: argparse.ArgumentParser) -> None:
    add = job.add_argument_group("with which models").add_argument
    absent = argparse.SUPPRESS
    add("--adapter", default=absent, metavar="FILE_OR_HUB_ID", help="(plus of the bundled stack)")
    add("--variant", default=absent, metavar="NAME", help="what its file does not tell")
    add("--encoder", default=absent, metavar="PATH_OR_HUB_ID", help="(that of base or adapter)")
    add("--base", default=absent, metavar="PATH_OR_HUB_ID", help="only to find them (bundled)")


def _share(text: str) -> tuple[str, float]:
    """NAME or NAME:WEIGHT; no name has a colon."""
    name, colon, weight = text.rpartition(":")
    if not colon:
        return text, 1.0
    try:
        return name, float(weight)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME:0.6") from None


def _numbers(text: str) -> list[float]:
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form 0.6,0.4") from None
