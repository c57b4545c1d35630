"""`imageprompt library`: named styles, added once and used by name."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imageprompt.cli import flags
from imageprompt.core.console import (
    PROGRAM,
    Parser,
    add_json,
    describe,
    examples,
    print_aligned,
    print_json,
    print_lines,
    print_table,
    provided,
)
from imageprompt.core.errors import OptionError, PictureError
from imageprompt.core.schema import options as fields_of
from imageprompt.generation import option_values
from imageprompt.generation.reference import REFERENCE_FIELDS, Reference
from imageprompt.generation.request import Request

if TYPE_CHECKING:
    from PIL import Image

    from imageprompt.adapter.adapter import Adapter
    from imageprompt.library import Library, Style

_MODELS = ("adapter", "encoder", "base", "variant")
_NOT_ENCODED = ("lora_mode",)
"""Flags under "faces" that a style does not keep."""


def add_library(library: Parser) -> None:
    library.epilog = examples(
        "imageprompt library add porcelain vase.jpg plate.jpg --tag blue --fusion average",
        'imageprompt generate --style porcelain --prompt "a teapot"',
        "imageprompt library list --sheet styles.png",
    )
    group = library.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    _add_add(group)
    _add_list(group)
    _add_show(group)
    _add_search(group)
    _add_mix(group)
    _add_export(group)
    _add_import(group)
    _add_remove(group)


def _command(
    group: Any, name: str, run: Callable[[argparse.Namespace], int], help_: str, *lines: str
) -> argparse.ArgumentParser:
    """Add one of the commands below `library`."""
    command: argparse.ArgumentParser = group.add_parser(
        name, help=help_, description=f"{help_[0].upper()}{help_[1:]}."
    )
    describe(command, run, *(f"{PROGRAM} library {line}" for line in lines))
    flags.add_options(command, Request, ("library",))
    add_json(command)
    return command


# ── add ─────────────────────────────────────────────────────────────────────────────────────────


def _add_add(group: Any) -> None:
    command = _command(
        group,
        "add",
        _add,
        "encode pictures and keep them as a style",
        "add porcelain vase.jpg",
        "add porcelain vase.jpg plate.jpg --tag blue --tag white --fusion average",
        "add film a.jpg b.jpg --weights 0.7,0.3 --framing pad --force",
        "add oil oil.jpg --base ./stable-diffusion-v1-5 \\",
    )
    command.epilog = (
        f"{command.epilog}\n      --adapter h94/IP-Adapter/models/ip-adapter-plus_sd15.safetensors"
    )
    command.add_argument("name", metavar="NAME", help="a name that files can have on any system")
    command.add_argument("pictures", metavar="PIC", nargs="*", help="its reference pictures")
    _add_new_style(command)
    for title in (option_values.ENCODING, option_values.FACES):
        names = [
            field.name
            for field in fields_of(Reference)
            if field.option.group == title and field.name not in _NOT_ENCODED
        ]
        flags.add_options(command.add_argument_group(title), Reference, names, once=True)
    _add_models(command, *_MODELS)


def _add(options: argparse.Namespace) -> int:
    from imageprompt.library.encoder_setup import load_with_encoder

    reference = Reference(reference=options.pictures, **provided(options, *REFERENCE_FIELDS))
    if reference.empty:
        raise PictureError(
            "no reference picture",
            reason="a style needs at least one",
            hint="Name the pictures after the style, or give --face-embeddings FILE.",
        )
    reference.check()
    models = load_with_encoder(**provided(options, *_MODELS, "faces"))
    arguments = reference.encode_arguments | {"face": reference.face}
    if reference.embeddings:
        arguments["embeddings"] = reference.embeddings
    style = _library(options).add(
        options.name,
        models.adapter,
        options.pictures or None,
        tags=options.tag,
        replace=options.force,
        made_with=models.made_with,
        **arguments,
    )
    return _print_style(options, style)


# ── list, show, search ──────────────────────────────────────────────────────────────────────────


def _add_list(group: Any) -> None:
    command = _command(
        group, "list", _list, "list the styles", "list", "list --tag blue --sheet styles.png"
    )
    command.add_argument("--tag", metavar="TAG", help="only styles with this tag")
    command.add_argument("--sheet", type=Path, metavar="FILE.png", help="draw them on a sheet")


def _list(options: argparse.Namespace) -> int:
    library = _library(options)
    styles = library.styles(options.tag)
    if options.sheet is not None and styles:
        from imageprompt.library.thumbnail import contact_sheet

        _save_picture(contact_sheet(styles), options.sheet)
    if options.json:
        print_json([style.as_dict() for style in styles])
    elif styles:
        print_table([_row(style) for style in styles], as_json=False)
    else:
        tagged = "" if options.tag is None else f" with the tag {options.tag!r}"
        print_lines(
            f"no styles{tagged} in {library.folder}; add some with `imageprompt library add`"
        )
    return 0


def _add_show(group: Any) -> None:
    command = _command(
        group,
        "show",
        _show,
        "show one style",
        "show porcelain",
        "show porcelain --thumbnail small.png",
    )
    command.add_argument("name", metavar="NAME")
    command.add_argument("--thumbnail", type=Path, metavar="FILE.png", help="save its thumbnail")


def _show(options: argparse.Namespace) -> int:
    from imageprompt.library import thumbnail

    style = _library(options).show(options.name)
    if options.thumbnail is not None:
        picture = thumbnail.read(style)
        if picture is None:
            raise OptionError(f"style {style.name!r}", reason="has no thumbnail")
        _save_picture(picture, options.thumbnail)
    return _print_style(options, style)


def _add_search(group: Any) -> None:
    command = _command(
        group,
        "search",
        _search,
        "find styles similar to a picture, or by name and tag",
        "search blue",
        "search photo.jpg --limit 3",
        'search "old porcelain" --text-encoder ./clip --encoder ./image_encoder',
    )
    command.add_argument("query", metavar="PIC_OR_TEXT")
    command.add_argument("--limit", type=int, metavar="N", help="at most N styles (default: all)")
    command.add_argument(
        "--text-encoder",
        default=argparse.SUPPRESS,
        metavar="DIR",
        help="compare a text with the pictures too: a CLIP text model with projection that shares"
        " a space with the image encoder",
    )
    _add_models(command, *_MODELS)


def _search(options: argparse.Namespace) -> int:
    from imageprompt.library.search import is_text

    encoders = provided(options, "text_encoder")
    if encoders or not is_text(options.query):
        from imageprompt.library.encoder_setup import load_with_encoder

        encoders["encoder"] = load_with_encoder(**provided(options, *_MODELS)).adapter.encoder
    with _quiet(bool(encoders)):
        results = _library(options).search(options.query, limit=options.limit, **encoders)
    if options.json:
        print_json(results.as_dict())
        return 0
    if results.hits:
        rows = [hit.as_dict() | {"tags": hit.style.tags} for hit in results.hits]
        print_table(rows, as_json=False)
    print_lines(f"{len(results.hits)} found; compared: {results.used}")
    if results.skipped:
        names = ", ".join(results.skipped)
        print_lines(f"{len(results.skipped)} skipped, made with other encoders: {names}")
    return 0


# ── mix ─────────────────────────────────────────────────────────────────────────────────────────


def _add_mix(group: Any) -> None:
    command = _command(
        group,
        "mix",
        _mix,
        "keep the weighted mean of styles as a new one",
        "mix porcelain:0.6 film:0.4 --as faded",
        "mix porcelain film --as half --tag mix",
    )
    command.add_argument(
        "shares", type=_share, metavar="NAME[:WEIGHT]", nargs="+", help="styles (weight 1)"
    )
    command.add_argument("--as", dest="name", required=True, metavar="NAME", help="the new style")
    _add_new_style(command)
    _add_models(command, "adapter", "base", "variant")


def _share(text: str) -> tuple[str, float]:
    """NAME or NAME:WEIGHT; a name contains no colon."""
    name, colon, weight = text.rpartition(":")
    if not colon:
        return text, 1.0
    try:
        return name, float(weight)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME:0.6") from None


def _mix(options: argparse.Namespace) -> int:
    from imageprompt.library.encoder_setup import load_projector, projector_of

    library, weights = _library(options), dict(options.shares)
    if len(weights) < len(options.shares):
        raise OptionError(
            "styles of a mix", reason="one is named twice", hint="Give one weight for each."
        )
    models = provided(options, "adapter", "base", "variant")
    adapter: Adapter | None
    if models:
        adapter = load_projector(**models)
    else:
        adapter = projector_of(library.show(options.shares[0][0]))
    style = library.mix(weights, options.name, adapter, tags=options.tag, replace=options.force)
    if style.recipe["of"] == "tokens":
        reason = "their adapter cannot be found"
        if adapter is not None:
            reason = "the styles have no features, or different ones"
        warnings.warn(f"mixed by tokens: {reason}", stacklevel=2)
    return _print_style(options, style)


# ── export, import, remove ──────────────────────────────────────────────────────────────────────


def _add_export(group: Any) -> None:
    command = _command(
        group,
        "export",
        _export,
        "write a style to a file",
        "export porcelain porcelain.safetensors",
    )
    command.add_argument("name", metavar="NAME")
    command.add_argument("file", metavar="FILE.safetensors")
    _add_force(command, "overwrite the file")


def _export(options: argparse.Namespace) -> int:
    path = _library(options).export(options.name, options.file, replace=options.force)
    print_json({"path": str(path)}) if options.json else print_lines(path)
    return 0


def _add_import(group: Any) -> None:
    command = _command(
        group,
        "import",
        _import,
        "add a style from a file",
        "import porcelain.safetensors",
        "import porcelain.safetensors --as china",
    )
    command.add_argument("file", metavar="FILE.safetensors")
    command.add_argument("--as", dest="name", metavar="NAME", help="name (default: its own)")
    _add_force(command, "replace a style of this name")


def _import(options: argparse.Namespace) -> int:
    style = _library(options).import_(options.file, options.name, replace=options.force)
    return _print_style(options, style)


def _add_remove(group: Any) -> None:
    command = _command(group, "remove", _remove, "delete styles", "remove porcelain film")
    command.add_argument("names", metavar="NAME", nargs="+")


def _remove(options: argparse.Namespace) -> int:
    library = _library(options)
    for name in options.names:
        library.show(name)  # raises before anything is removed
    for name in options.names:
        library.remove(name)
    print_json({"removed": options.names}) if options.json else print_lines(*options.names)
    return 0


# ── shared ──────────────────────────────────────────────────────────────────────────────────────


def _add_new_style(command: argparse.ArgumentParser) -> None:
    command.add_argument("--tag", action="append", default=[], metavar="TAG", help="repeatable")
    _add_force(command, "replace a style of this name")


def _add_force(command: argparse.ArgumentParser, help_: str) -> None:
    command.add_argument("--force", action="store_true", help=help_)


def _add_models(command: argparse.ArgumentParser, *names: str) -> None:
    """The base is not loaded: it only tells where adapter and encoder are."""
    group = command.add_argument_group(f"{option_values.MODELS} (the base itself is not loaded)")
    flags.add_options(group, Reference, names, once=True)
    flags.add_options(group, Request, names, once=True)


def _library(options: argparse.Namespace) -> Library:
    """The library that is named, or the default one. Raises OptionError if it cannot be read."""
    from imageprompt.library import Library

    library = Library(getattr(options, "library", None))
    library.names()
    return library


def _row(style: Style) -> dict[str, Any]:
    return {
        "style": style.name,
        "tags": style.tags,
        "variant": f"{style.variant}, {style.part}" if style.part else style.variant,
        "tokens": style.shape[0],
        "references": [one.name or "in memory" for one in style.references],
        "created": style.created[:10],
    }


def _print_style(options: argparse.Namespace, style: Style) -> int:
    """Print everything known about one style."""
    if options.json:
        print_json(style.as_dict())
        return 0
    encoder = style.encoder
    entries: dict[str, Any] = {
        **_row(style),
        "adapter": f"{style.adapter.name or 'unnamed'}, projector {style.adapter.hash}",
        "encoder": "none" if encoder is None else f"{encoder.name or 'unnamed'}, {encoder.hash}",
        "recipe": [_step(*entry) for entry in style.recipe.items() if entry[0] != "hashes"],
        "hash": style.hash[:16],
        "file": str(style.path),
    }
    lists = {
        key: ", ".join(value) for key, value in entries.items() if isinstance(value, list | tuple)
    }
    print_aligned([(key, str(value) or "-") for key, value in (entries | lists).items()])
    return 0


def _quiet(loads: bool) -> AbstractContextManager[None]:
    """No progress bars of the libraries, if models are loaded."""
    if not loads:
        return nullcontext()
    from imageprompt.loading import quiet_loading

    return quiet_loading(True)


def _step(name: str, value: Any) -> str:
    """One entry of a style's recipe; of a mix, the shares."""
    if isinstance(value, dict):
        shares = [(part, share) for part, share in value.items() if isinstance(share, int | float)]
        value = " + ".join(f"{share:g} {part}" for part, share in shares) or "kept"
    return f"{name} {value}"


def _save_picture(picture: Image.Image, path: Path) -> None:
    from imageprompt.core.atomic_files import write_atomically
    from imageprompt.library.thumbnail import image_bytes

    if path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise OptionError(
            f"picture file {str(path)!r}", reason="not .png or .jpg", hint="Choose another name."
        )
    if not path.parent.is_dir():
        raise OptionError(
            f"picture file {str(path)!r}",
            reason="its folder does not exist",
            hint="Create the folder first.",
        )
    content = image_bytes(picture, format="PNG" if path.suffix.lower() == ".png" else "JPEG")
    with write_atomically(path) as temporary:
        temporary.write_bytes(content)  # Pillow would take a short write for a whole one
