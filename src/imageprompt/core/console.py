"""The terminal: a parser with helpful errors, all that is printed, and one progress bar."""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from typing import Any, NoReturn

from imageprompt.core.errors import printable, shortened

PROGRAM = "imageprompt"
USAGE_ERROR = 2
MAX_WORD = 100
"""Characters of a word that is compared with those that are known."""


class Parser(argparse.ArgumentParser):
    """Errors are one line that names the nearest flag and the right help page."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **options)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As argparse does, but unknown arguments are an error of the parser that met them."""
        options, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(self._unknown(unknown))
        return options, unknown

    def error(self, message: str) -> NoReturn:
        end = "" if message.endswith("?") else "."
        message = printable(shortened(" ".join(message.split())))
        self.exit(USAGE_ERROR, f"{self.prog}: {message}{end} See {self.prog} --help\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        """Help and errors; a disk that is full is not passed over, as argparse does."""
        stream = sys.stderr if file is None else file
        stream.write(message)

    def _unknown(self, arguments: Sequence[str]) -> str:
        flag = next((a for a in arguments if a.startswith("-")), None)
        if flag is None:
            return f"unexpected argument {arguments[0]!r}"
        flag = flag.partition("=")[0]
        return f"unknown flag {flag}{did_you_mean(flag, self._option_string_actions)}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ ". Did you mean ...?" if one of the known words or flags is near, else ""."""
    bare = word.lstrip("-")
    words = {other.lstrip("-"): other for other in known}
    begun = [other for other in words if bare and other.startswith(bare)]
    near = begun[:1] or get_close_matches(bare[:MAX_WORD], words, n=1)
    return f". Did you mean {words[near[0]]}?" if near else ""


def describe(command: argparse.ArgumentParser, run: Any, *examples_: str, notes: str = "") -> None:
    """Set what a command runs, its examples and the notes at the end of its help."""
    command.set_defaults(run=run)
    command.epilog = examples(*examples_) + (f"\n\n{notes}" if notes else "")


def examples(*lines: str) -> str:
    """The examples at the end of a help text."""
    return "examples:\n" + "\n".join(f"  {line}" for line in lines)


def add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print JSON and no progress")


def provided(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The options among `names` that the user has set."""
    return {name: getattr(options, name) for name in names if name in options}


# ── progress ────────────────────────────────────────────────────────────────────────────────────


def wants_progress(options: argparse.Namespace) -> bool:
    """Progress is shown on a terminal, and not beside JSON."""
    return not options.json and sys.stderr.isatty()


class Bars:
    """One progress bar on stderr with the time left; nothing at all if not `shown`."""

    FORMAT = "{desc} |{bar:30}| {percentage:3.0f}%, {remaining} left"

    def __init__(self, shown: bool) -> None:
        self._shown = shown
        self._bar: Any = None

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def update(self, phase: str, done: int, total: int) -> None:
        """Report that `done` of `total` are finished, such as "picture 5 of 60".

        A phase that does not continue the count of the one before it gets a new bar.
        """
        if not self._shown:
            return
        bar = self._bar
        if bar is None or (phase != bar.phase and (total != bar.total or done < bar.n)):
            from tqdm import tqdm

            self.__exit__()
            bar = tqdm(
                total=total,
                initial=done,  # what was done before does not count as speed
                desc=printable(phase),
                bar_format=self.FORMAT,
                dynamic_ncols=True,
            )
        bar.phase, bar.total, self._bar = phase, total, bar
        bar.set_description_str(printable(phase), refresh=False)
        bar.update(done - bar.n)

    def log(self, line: str) -> None:
        """Print a line on stderr, above the bar if there is one; also if bars are not shown."""
        note(line)


# ── output ──────────────────────────────────────────────────────────────────────────────────────
# The only place of the package that writes to stdout and stderr. What is printed may have been
# named by a stranger: nothing reaches a terminal but characters that it only shows.


def print_lines(*lines: object) -> None:
    """Print each of `lines` on one line of stdout."""
    for line in lines:
        print(printable(str(line)))


def print_text(text: object) -> None:
    """Print a text of several lines on stdout; its author made sure that they are its own."""
    print_lines(*str(text).removesuffix("\n").split("\n"))


def print_json(data: Any) -> None:
    print(json_text(data))


def json_text(data: Any) -> str:
    """`data` as JSON that is safe to show and to write: see `printable`.

    A parser reads back what `data` has, lone surrogates included.
    """
    return _BEYOND_ASCII.sub(_as_json, json.dumps(data, ensure_ascii=False, indent=1))


_BEYOND_ASCII = re.compile(r"[^\n -~]")


def _as_json(found: re.Match[str]) -> str:
    character = found[0]
    if character.isprintable():
        return character
    return r"\u007f" if character == "\x7f" else json.dumps(character)[1:-1]


def note(line: str) -> None:
    """Print one line on stderr, above a progress bar if there is one."""
    if sys.stderr is None:  # a process without a console
        return
    tqdm = sys.modules.get("tqdm")
    write = print if tqdm is None else tqdm.tqdm.write
    write(printable(line), file=sys.stderr)
    sys.stderr.flush()


def warn(message: Warning | str, *_: Any, **__: Any) -> None:
    """Print a warning as one line on stderr: for `warnings.showwarning`."""
    note(f"{PROGRAM}: warning: {shortened(' '.join(str(message).split()))}")


@contextmanager
def errors_only(name: str | None = None) -> Iterator[None]:
    """A logger (default: the root) passes errors alone; afterwards its level is what it was."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def log_record(*arguments: Any, **more: Any) -> logging.LogRecord:
    """A record of any library's log, as one line that is safe to show."""
    record = logging.LogRecord(*arguments, **more)
    with suppress(Exception):  # arguments that do not fit are the handler's to report
        record.msg, record.args = printable(record.getMessage()), None
    record.exc_info = None
    return record


def print_table(rows: list[dict[str, Any]], as_json: bool) -> int:
    """Print rows with the same keys as a table with a head, or as JSON; returns exit code 0."""
    if as_json:
        print_json(rows)
    else:
        print_aligned(with_head(tuple(rows[0]), [[*row.values()] for row in rows]), indent="")
    return 0


def with_head(head: tuple[str, ...], rows: Iterable[Iterable[Any]]) -> list[tuple[str, ...]]:
    """A head, a line below it, and the rows as text."""
    body = [tuple(map(cell, row)) for row in rows]
    return [head, tuple("-" * len(name) for name in head), *body]


def print_aligned(rows: Iterable[tuple[str, ...]], indent: str = "  ") -> None:
    print_lines(*aligned(rows, indent))


def aligned(rows: Iterable[tuple[str, ...]], indent: str = "  ") -> Iterator[str]:
    """The rows as lines with aligned columns, safe to show."""
    table = [tuple(map(printable, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = (text.ljust(width) for text, width in zip(row, widths, strict=True))
        yield f"{indent}{'  '.join(cells)}".rstrip()


def cell(value: Any) -> str:
    """A value as the text of a table cell."""
    if value is None:
        return "-"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


# ── streams ─────────────────────────────────────────────────────────────────────────────────────


def open_streams() -> None:
    """Make stdout and stderr usable, whatever the process was started with.

    Characters that their encoding lacks are escaped. A closed one leads nowhere, and its number
    cannot become that of a file that is opened later.
    """
    for number, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            with suppress(OSError):
                os.fstat(number)
                continue
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115
        reconfigure = getattr(getattr(sys, name), "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def abandon_streams() -> None:
    """Let stdout and stderr lead nowhere: their reader has left, or their disk is full.

    Nothing that is still in a buffer may be flushed when the process ends.
    """
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
