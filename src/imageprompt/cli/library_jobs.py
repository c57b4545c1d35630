"""What the commands of `imageprompt library` do and print."""

from __future__ import annotations

import argparse
import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imageprompt.core.console import given, print_aligned, print_json, print_table
from imageprompt.core.errors import OptionError, PictureError
from imageprompt.generation.reference import NAMES, Reference

if TYPE_CHECKING:
    from PIL import Image

    from imageprompt.library import Library, Style

_MODELS = ("adapter", "encoder", "base", "variant")


def add(options: argparse.Namespace) -> int:
    from imageprompt.library.encoder_setup import encoding_bench

    asked = Reference(reference=options.pictures, **given(options, *NAMES))
    if asked.empty:
        raise PictureError(
            "no reference picture",
            reason="a style is made of one or more",
            hint="Name them after the style, or give --face-embeddings FILE.",
        )
    asked.check()
    bench = encoding_bench(**given(options, *_MODELS, "faces"))
    encoding = asked.encode_arguments | {"face": asked.face}
    if asked.embeddings:
        encoding["embeddings"] = asked.embeddings
    style = _library(options).add(
        options.name,
        bench.adapter,
        options.pictures or None,
        tags=options.tag,
        replace=options.force,
        made_with=bench.made_with,
        **encoding,
    )
    return _told(options, style)


def list_(options: argparse.Namespace) -> int:
    library = _library(options)
    styles = library.styles(options.tag)
    if options.sheet is not None and styles:
        from imageprompt.library.thumbnail import contact_sheet

        _write(contact_sheet(styles), options.sheet)
    if options.json:
        print_json([style.as_dict() for style in styles])
    elif styles:
        print_table([_row(style) for style in styles], as_json=False)
    else:
        which = "no styles" if options.tag is None else f"no styles with the tag {options.tag!r}"
        print(f"{which} in {library.folder}; `imageprompt library add` puts them there")
    return 0


def show(options: argparse.Namespace) -> int:
    from imageprompt.library import thumbnail

    style = _library(options).show(options.name)
    if options.thumbnail is not None:
        small = thumbnail.read(style)
        if small is None:
            raise OptionError(f"style {style.name!r}", reason="it has no thumbnail")
        _write(small, options.thumbnail)
    return _told(options, style)


def search(options: argparse.Namespace) -> int:
    from imageprompt.library.search import is_text

    wanted = given(options, "text_encoder")
    if not is_text(options.what) or wanted:
        from imageprompt.library.encoder_setup import encoding_bench

        bench = encoding_bench(**given(options, *_MODELS))
        wanted["encoder"] = bench.adapter.encoder
    with _quiet(bool(wanted)):
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


def mix(options: argparse.Namespace) -> int:
    from imageprompt.library.encoder_setup import projector, projector_of

    library, weights = _library(options), dict(options.shares)
    if len(weights) < len(options.shares):
        raise OptionError("styles of a mix", reason="one of them is named twice")
    named = given(options, "adapter", "base", "variant")
    adapter = projector(**named) if named else projector_of(library.show(options.shares[0][0]))
    style = library.mix(weights, options.name, adapter, tags=options.tag, replace=options.force)
    if style.recipe["of"] == "tokens":
        why = "their features were not kept, or differ in kind"
        why = "their adapter is not at hand" if adapter is None else why
        warnings.warn(f"mixed by tokens: {why}", stacklevel=2)
    return _told(options, style)


def export(options: argparse.Namespace) -> int:
    path = _library(options).export(options.name, options.file, replace=options.force)
    print_json({"path": str(path)}) if options.json else print(path)
    return 0


def import_(options: argparse.Namespace) -> int:
    style = _library(options).import_(options.file, options.name, replace=options.force)
    return _told(options, style)


def remove(options: argparse.Namespace) -> int:
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
        "recipe": [_step(*entry) for entry in style.recipe.items() if entry[0] != "hashes"],
        "hash": style.hash[:16],
        "file": str(style.path),
    }
    lists = {
        key: ", ".join(value) for key, value in said.items() if isinstance(value, list | tuple)
    }
    print_aligned([(key, str(value) or "-") for key, value in (said | lists).items()])
    return 0


def _quiet(loads: bool) -> AbstractContextManager[None]:
    """No bars while models load, if any do."""
    if not loads:
        return nullcontext()
    from imageprompt.loading import quiet_loading

    return quiet_loading(True)


def _step(name: str, value: Any) -> str:
    """An entry of a recipe; of a mix, the shares."""
    if isinstance(value, dict):
        value = " + ".join(f"{share:g} {part}" for part, share in value.items())
    return f"{name} {value}"


def _write(picture: Image.Image, path: Path) -> None:
    from imageprompt.core.atomic_files import write_atomically

    if path.suffix.lower() not in (".png", ".jpg", ".jpeg") or not path.parent.is_dir():
        raise OptionError(
            f"picture file {str(path)!r}",
            reason="it ends in .png or .jpg, in a folder that is there",
            hint="Name another one.",
        )
    with write_atomically(path) as temporary:
        picture.save(temporary)
