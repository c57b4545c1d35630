"""`python -m tests.attacks`: the table, each guard taken away, random mutations of sound files."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict

from . import guards, mutate
from .harness import TOGETHER, Result, run
from .mutate import Tried


def main() -> int:
    """Run what the options ask for. If anything fails, list it at the end and return 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.attacks", description=__doc__)
    parser.add_argument("--door", default="", metavar="WORDS", help="only doors with these words")
    parser.add_argument("--row", default="", metavar="WORDS", help="only attacks with these words")
    parser.add_argument("--alone", action="store_true", help="a process for each row")
    parser.add_argument("--seconds", type=float, default=60.0, help="of mutations; 0: none")
    parser.add_argument("--format", default="", metavar="WORDS", help="only mutate these formats")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations")
    parser.add_argument("--save", default="", metavar="FOLDER", help="keep mutants that fail")
    parser.add_argument("--json", action="store_true", help="lines of JSON")
    options = parser.parse_args()
    failed: list[str] = []
    whole = not (options.format or options.door or options.row)
    if not options.format:
        failed += _rows(options)
    if whole:
        failed += _guards(options)
    if options.seconds and not options.door and not options.row:
        failed += _mutations(options)
    if failed and not options.json:
        print("", f"{len(failed)} failed:", *failed, sep="\n")
    return bool(failed)


# ── the table ───────────────────────────────────────────────────────────────────────────────────


def _rows(options: argparse.Namespace) -> list[str]:
    """Run the table; a line for each row that does not hold."""
    results = []
    for result in run(options.door, options.row, together=1 if options.alone else TOGETHER):
        results.append(result)
        if options.json:
            print(json.dumps(asdict(result)), flush=True)
        elif result.problems:
            print(result.line, result.trace, sep="\n", flush=True)
        elif options.row:
            print(f"{result.door} | {result.attack}: {result.outcome}: {result.message}")
    if not options.json:
        _print_doors(results)
    return [result.line for result in results if result.problems]


def _print_doors(results: list[Result]) -> None:
    names = Counter((result.door, result.attack) for result in results)
    for (door, attack), count in names.items():
        if count > 1:
            print(f"{door} | {attack}: {count} rows have this name")
    doors: dict[str, list[Result]] = {}
    for result in results:
        doors.setdefault(result.door, []).append(result)
    head = ("door", "rows", "failed", "CPU s", "slowest", "largest MB")
    _print_table(head, (_door(*item) for item in (doors | {"all": results}).items()))


def _door(name: str, rows: list[Result]) -> tuple[str, ...]:
    failed = sum(bool(row.problems) for row in rows)
    cpu, peaks = [row.cpu for row in rows], [row.peak for row in rows]
    slowest, largest = max(cpu, default=0), max(peaks, default=0) / 2**20
    return name, f"{len(rows)}", f"{failed}", f"{sum(cpu):.1f}", f"{slowest:.2f}", f"{largest:.0f}"


# ── guards ──────────────────────────────────────────────────────────────────────────────────────


def _guards(options: argparse.Namespace) -> list[str]:
    """Take each guard away: a row must fail; a line for each that no row noticed."""
    found = list(guards.run())
    for one in found if options.json else ():
        print(json.dumps(one), flush=True)
    missed = [one["kind"] for one in found if not one["noticed"]]
    if not options.json:
        print(f"{len(found)} guards taken away, {len(found) - len(missed)} noticed", *missed)
    return [f"without the guard {kind!r} every row holds" for kind in missed]


# ── mutations ───────────────────────────────────────────────────────────────────────────────────


def _mutations(options: argparse.Namespace) -> list[str]:
    """Try mutants; a line for each that failed."""
    start, failed = time.monotonic(), []
    sums: dict[str, Tried] = {}
    names = ("format", "seconds", "seed", "save")
    for tried in mutate.run(**{name: getattr(options, name) for name in names}):
        if options.json:
            print(json.dumps(asdict(tried)), flush=True)
        for fault in tried.faults:
            failed.append(f"{tried.format} {options.seed} {fault['index']}: {fault['problem']}")
            print(failed[-1], flush=True)
        found = sums.setdefault(tried.format, Tried(tried.format))
        found.count += tried.count
        found.refused += tried.refused
        found.seconds += tried.seconds
        found.faults += tried.faults
        if sys.stderr.isatty():
            count = sum(one.count for one in sums.values())
            print(f"\r{count:,} mutants, {time.monotonic() - start:.0f} s", end="", file=sys.stderr)
    if not options.json:
        print()
        total = Tried(
            "all", *(sum(getattr(one, name) for one in sums.values()) for name in _SUMMED)
        )
        total.faults = [fault for one in sums.values() for fault in one.faults]
        head = ("format", "mutants", "refused", "failed", "CPU s", "each ms")
        _print_table(head, map(_format, (*sums.values(), total)))
        print(f"{time.monotonic() - start:.0f} s, seed {options.seed}")
    return failed


_SUMMED = ("count", "refused", "seconds")


def _format(one: Tried) -> tuple[str, ...]:
    each = 1000 * one.seconds / max(one.count, 1)
    counts = (f"{number:,}" for number in (one.count, one.refused, len(one.faults)))
    return one.format, *counts, f"{one.seconds:.1f}", f"{each:.1f}"


def _print_table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    """The first column to the left, numbers to the right."""
    table = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    print()
    for first, *numbers in table:
        cells = (cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True))
        print("  ".join((first.ljust(widths[0]), *cells)))


if __name__ == "__main__":
    sys.exit(main())
