"""`imageprompt compare`: two adapters, or two scales, on the same prompts, references and seeds."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from imageprompt.cli import flags
from imageprompt.core.console import (
    Parser,
    add_json,
    describe,
    note,
    print_json,
    print_lines,
    print_text,
)
from imageprompt.core.errors import OptionError

if TYPE_CHECKING:
    from imageprompt.evaluation.study.results import Results

T = TypeVar("T")


def add_compare(command: Parser) -> None:
    describe(
        command,
        _compare,
        "imageprompt compare study-a study-b",
        "imageprompt compare study --adapter base --adapter plus --scale 0.6",
        "imageprompt compare study --adapter plus --scale 0.4 --scale 0.8",
        "imageprompt compare study-a study-b --scale 0.6 --output comparison.html",
        notes="A flag that is given once is for both sides; given twice, for A and then for B.",
    )
    command.add_argument("studies", nargs="+", metavar="STUDY", help="one or two study folders")
    command.add_argument(
        "--adapter", action="append", default=[], metavar="NAME", help="its name in the study"
    )
    command.add_argument(
        "--scale",
        action="append",
        default=[],
        type=float,
        metavar="S",
        help="without it, pairs of each scale count together",
    )
    command.add_argument(
        "--metric", action="append", metavar="NAMES", help="comma-separated (default: all)"
    )
    command.add_argument(
        "--output", type=Path, metavar="FILE.html", help="also write it as a page, with pictures"
    )
    add_json(command)


def _compare(options: argparse.Namespace) -> int:
    from imageprompt.evaluation.compare import compare, part_of

    if options.output is not None:
        flags.check_output_file(options.output)
    studies = _studies(options)
    adapters = _both("--adapter", options.adapter)
    scales = _both("--scale", options.scale)
    a, b = (
        part_of(study, adapter, scale)
        for study, adapter, scale in zip(studies, adapters, scales, strict=True)
    )
    found = compare(a, b, None if options.metric is None else flags.metrics_of(options.metric))
    if options.output is not None:
        from imageprompt.evaluation.report import write_comparison

        write_comparison(found, options.output)
    print_json(found.as_dict()) if options.json else print_text(found)
    if options.output is not None and not options.json:
        print_lines("", options.output)
    return 0


def _studies(options: argparse.Namespace) -> tuple[Results, Results]:
    """A and B. Raises OptionError."""
    from imageprompt.evaluation.study.results import read_results

    if len(options.studies) > 2:
        raise OptionError(f"{len(options.studies)} studies", reason="compare takes one or two")
    found = [read_results(one) for one in options.studies]
    for one in found:
        if not one.complete:
            note(f"{one.folder}: not finished; what there is is compared")
    if len(found) == 1 and max(len(options.adapter), len(options.scale)) < 2:
        known = found[0].where(row="adapter").adapter.distinct()
        if len(known) != 2 or options.adapter:
            raise OptionError(
                "one study",
                reason="which two to compare is not said",
                hint=f"Give --adapter or --scale twice; it has {', '.join(known) or 'no adapter'}.",
            )
        options.adapter = known
    return found[0], found[-1]


def _both(flag: str, given: Sequence[T]) -> tuple[T | None, T | None]:
    """The values of a flag for A and B. Raises OptionError if it is given more often."""
    if len(given) > 2:
        raise OptionError(f"{flag} {len(given)} times", reason="there are two sides, A and B")
    return (given[0], given[-1]) if given else (None, None)
