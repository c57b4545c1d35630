"""The terminal side that all commands share: parser, examples, JSON, tables, progress."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

PROGRAM = "imageprompt"
USAGE_ERROR = 2


class Parser(argparse.ArgumentParser):
    """Errors are one line, as everywhere else; the help shows its examples as they are written."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE_ERROR, f"{PROGRAM}: error: {message}. See `{self.prog} --help`.\n")


def add_command(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], int],
    help_: str,
    *lines: str,
) -> argparse.ArgumentParser:
    """A subcommand that calls `run`; `lines` are its examples."""
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=help_, description=f"{help_[0].upper()}{help_[1:]}.", epilog=examples(*lines)
    )
    command.set_defaults(run=run)
    return command


def add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print JSON, and no progress bars")


def given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Those of the options that the user has set."""
    return {name: getattr(options, name) for name in names if name in options}


def parse_size(text: str) -> tuple[int, int]:
    """WxH in pixels, as an argument's type."""
    width, cross, height = text.lower().partition("x")
    if not (cross and width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form WxH, such as 512x512")
    return int(width), int(height)


def number_or_word(text: str) -> int | str:
    """For argparse: "largest" stays a text, "0" is a number."""
    return int(text) if text.isdecimal() else text


def examples(*lines: str) -> str:
    """The epilogue of a help text."""
    return "examples:\n" + "\n".join(f"  {line}" for line in lines)


def wants_progress(options: argparse.Namespace) -> bool:
    """Bars are for people who watch."""
    return not options.json and sys.stderr.isatty()


class Bars:
    """One progress bar after the other on stderr, for people who watch."""

    def __init__(self, watched: bool) -> None:
        self._watched, self._what = watched, ""
        self._bar: Any = None

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, what: str, done: int, total: int) -> None:
        """So much of this is done."""
        if not self._watched:
            return
        if what != self._what:
            from tqdm import tqdm

            self.__exit__()
            self._what, self._bar = what, tqdm(total=total, desc=what, unit="")
        self._bar.update(done - self._bar.n)


def print_json(data: Any) -> None:
    print(json.dumps(data, ensure_ascii=False, indent=1))


def print_table(rows: list[dict[str, Any]], as_json: bool) -> int:
    if as_json:
        print_json(rows)
    else:
        head = tuple(rows[0])
        body = [tuple(shown(value) for value in row.values()) for row in rows]
        print_aligned([head, tuple("-" * len(name) for name in head), *body], indent="")
    return 0


def print_aligned(rows: Iterable[tuple[str, ...]], indent: str = "  ") -> None:
    for line in aligned(rows, indent):
        print(line)


def aligned(rows: Iterable[tuple[str, ...]], indent: str = "  ") -> Iterator[str]:
    """The rows as lines whose columns stand below one another."""
    table = list(rows)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield f"{indent}{'  '.join(cells)}".rstrip()


def shown(value: Any) -> str:
    if value is None:
        return "-"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
