"""Flags from annotated options: help, type and default of a flag are those of the field."""

from __future__ import annotations

import argparse
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from imageprompt.core import bundled
from imageprompt.core.atomic_files import check_folder
from imageprompt.core.errors import OptionError
from imageprompt.core.schema import Field, options, without_none

BASE_HELP = f"a pipeline's or denoiser's folder, {', '.join(bundled.FOLDERS)}, or sd15, sdxl ..."


class Once(argparse.Action):
    """A flag that must not be given twice: the first value would be lost silently."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        value: Any,
        flag: str | None = None,
    ) -> None:
        if self.dest in namespace:
            also = "--also" in parser._option_string_actions
            more = "; --also starts another reference" if also else ""
            parser.error(f"{flag} is given twice{more}")
        setattr(namespace, self.dest, value)


def add_options(
    group: Any, kind: type, names: Container[str] | None = None, *, once: bool = False
) -> None:
    """Add a flag for every annotated field of `kind`, or for those in `names`.

    Flags that are not given stay out of the namespace, so that the defaults are those of the
    fields. If a flag is repeated, the last value counts as usual, or with `once` it is an error.
    """
    for field in options(kind):
        if names is None or field.name in names:
            add_option(group, field, once=once)


def add_option(group: Any, field: Field, *, once: bool = False) -> None:
    """Add the flag of one field; that of a bool, False by default, takes no value."""
    how: dict[str, Any] = {"type": _type(field), "choices": _choices(field)}
    how["metavar"] = field.option.metavar
    if without_none(field.type) is bool:
        how = {"action": "store_true"}
    elif field.option.repeat:
        how["action"] = "append"
    elif once:
        how["action"] = Once
    group.add_argument(
        field.flag, dest=field.name, default=argparse.SUPPRESS, help=_help(field), **how
    )


def by_group(kind: type) -> Iterator[tuple[str, list[Field]]]:
    """The annotated fields under the headings of their groups, in order."""
    groups: dict[str, list[Field]] = {}
    for field in options(kind):
        groups.setdefault(field.option.group or "options", []).append(field)
    return iter(groups.items())


def _type(field: Field) -> Any:
    if field.option.parse is not None:
        return field.option.parse
    kind = without_none(field.type)
    return kind if kind in (int, float) else None


def _choices(field: Field) -> tuple[Any, ...] | None:
    kind = without_none(field.type)
    return get_args(kind) if get_origin(kind) is Literal and not field.option.parse else None


def _help(field: Field) -> str:
    """The field's help, with its default where the text does not name one."""
    text = field.option.help.replace("%", "%%")
    default = field.default
    number = isinstance(default, int | float) and not isinstance(default, bool)
    return f"{text} (default {default:g})" if number and "default" not in text else text


# ── flags of several commands ───────────────────────────────────────────────────────────────────


def add_base(command: argparse.ArgumentParser, purpose: str, **more: Any) -> None:
    """`--base` of the commands that look at a base's description only."""
    how = {"default": argparse.SUPPRESS, **more}
    command.add_argument(
        "--base", type=base, metavar="DIR|FAMILY", help=f"{purpose}: {BASE_HELP}", **how
    )


def base(text: str) -> str:
    """A bundled stack by its name as its folder; anything else unchanged."""
    return str(bundled.folder(text)) if text in bundled.FOLDERS else text


# ── metrics ─────────────────────────────────────────────────────────────────────────────────────


def add_extractors(command: Any) -> None:
    """The flag that says which models make the features: `extractors_of` reads it."""
    command.add_argument(
        "--extractor",
        action="append",
        default=[],
        metavar="ROLE=SOURCE",
        help="the model of a role, such as clip=openai/clip-vit-large-patch14; repeated",
    )


def extractors_of(options: argparse.Namespace) -> dict[str, str]:
    """Role -> source. Raises OptionError."""
    found = dict[str, str]()
    for given in options.extractor:
        role, equals, source = given.partition("=")
        if not (equals and role and source):
            raise OptionError(
                f"--extractor {given!r}",
                reason="not ROLE=SOURCE",
                hint="Write --extractor clip=openai/clip-vit-large-patch14.",
            )
        if role in found:
            raise OptionError(f"--extractor {role}", reason="given twice")
        found[role] = source
    return found


def names_of(given: list[str]) -> list[str]:
    """The names in comma-separated lists."""
    return [name.strip() for names in given for name in names.split(",") if name.strip()]


def check_output_file(path: Path) -> None:
    """Before the work: can this file be written? Raises OptionError, WriteError."""
    if path.is_dir():
        raise OptionError(
            f"--output {path}",
            reason="is a folder",
            hint="Name a file in it that is to be written.",
        )
    check_folder(path.parent).mkdir(parents=True, exist_ok=True)


def metrics_of(given: list[str]) -> list[str]:
    """The names in lists of --metric. Raises OptionError if there is none."""
    if names := names_of(given):
        return names
    raise OptionError(
        "--metric", reason="names none", hint="`imageprompt score --list` lists them."
    )
