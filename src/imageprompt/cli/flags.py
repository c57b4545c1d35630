"""Flags that several commands share, as data: how references are read, faces, which adapter."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import Any

from imageprompt.core.console import number_or_word

Flag = tuple[str, str, dict[str, Any], str]
"""Flag, what its value is called in the help, argparse's other options, help."""


def again(**options: Any) -> dict[str, Any]:
    """A flag that may be repeated."""
    return {"action": "append", **options}


class Once(argparse.Action):
    """A flag with one value: given twice, the first one would be lost without a word."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        value: Any,
        flag: str | None = None,
    ) -> None:
        if self.dest in namespace:
            further = "--also" in parser.format_usage()
            remedy = "; a further reference begins with --also" if further else ""
            parser.error(f"{flag} is given twice{remedy}")
        setattr(namespace, self.dest, value)


def of(type_: Callable[[str], Any]) -> dict[str, Any]:
    """A flag of another type than text."""
    return {"type": type_}


def numbers(text: str) -> list[float]:
    """For argparse: "0.7,0.3"."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form 0.7,0.3") from None


def add_flags(group: Any, flags: Iterable[Flag], *, once: bool = True) -> None:
    """Flags that are not given stay out of the namespace: defaults are those of the job.

    Without `once` the last of several values counts, as is usual in shells.
    """
    for flag, metavar, more, help_ in flags:
        how = {"action": Once if once else "store", "default": argparse.SUPPRESS, **more}
        group.add_argument(flag, metavar=metavar, help=help_, **how)


def add_set(command: argparse.ArgumentParser) -> None:
    """Changes to a config: `options.set` is a list of texts."""
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a key of the config; may be repeated",
    )


ADAPTER: tuple[Flag, ...] = (
    ("--adapter", "FILE_OR_HUB_ID", {}, "file, or base | plus of the bundled stack"),
    ("--variant", "NAME", {}, "what the file does not tell: faceid-plus, faceid-plus-v2"),
)
ENCODER: tuple[Flag, ...] = (
    ("--encoder", "PATH_OR_HUB_ID", {}, "image encoder (that of base or adapter)"),
)
READING: tuple[Flag, ...] = (
    (
        "--fusion",
        "HOW",
        {},
        "of several: concat, average, weighted, attention-weighted ... (concat)",
    ),
    ("--weights", "A,B", of(numbers), "one for each reference"),
    ("--framing", "HOW", {}, "squash, crop, crop:top, pad, tiles, crop+sharpen:0.3"),
    ("--reference-mask", "PIC", again(), "white: what of the reference is looked at"),
    ("--negative-reference", "PIC", again(), "what to keep away from"),
    ("--noise", "N", {}, "noise on the side without a picture: 0.4, dissolve:0.4"),
    ("--noise-seed", "N", of(int), "(0)"),
    ("--subtract-text", "WORDS", {}, "what to take out of the reference"),
    ("--subtract-strength", "S", of(float), "(1)"),
    ("--fusion-text", "WORDS", {}, "what attention-weighted weighs against"),
    ("--text-encoder", "DIR", {}, "reads those words (the base's, where it can)"),
)
FACES: tuple[Flag, ...] = (
    ("--faces", "PACK", {}, "insightface's model pack: finds the faces in the references"),
    ("--face", "WHICH", of(number_or_word), "largest, all or a number (largest)"),
    ("--face-embeddings", "FILE", again(), "instead of pictures, or beside them; repeatable"),
    ("--face-strength", "S", of(float), "of what FaceID-plus v2 sees beside the identity (1)"),
)
