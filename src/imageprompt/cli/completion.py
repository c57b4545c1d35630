"""`imageprompt completion`: scripts that complete commands, flags and files in a shell."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from imageprompt.cli import COMMANDS, add_arguments, sentence, top_parser
from imageprompt.core.console import Parser, describe, print_text

SHELLS = ("bash", "zsh", "tcsh")
_FILES = ("PIC", "FILE", "CONFIG", "SRC", "DST", "PACK", "PATH", "A", "B")
"""How the metavar of an argument begins that may be a file."""


def add_completion(command: Parser) -> None:
    describe(
        command,
        _completion,
        'eval "$(imageprompt completion bash)"          # in ~/.bashrc',
        "imageprompt completion bash > ~/.local/share/bash-completion/completions/imageprompt",
        "imageprompt completion zsh > ~/.zfunc/_imageprompt  # with fpath+=~/.zfunc in ~/.zshrc",
        "imageprompt completion tcsh > ~/.imageprompt.tcsh   # with source ~/.imageprompt.tcsh",
    )
    command.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))


def _completion(options: argparse.Namespace) -> int:
    import shtab

    parser = full_parser()
    for action in _actions(parser):
        kind = _kind(action)
        if kind is not None:
            action.complete = getattr(shtab, kind)  # type: ignore[attr-defined]
    print_text(shtab.complete(parser, options.shell))
    return 0


def full_parser() -> Parser:
    """The parser of `imageprompt` with all its commands."""
    parser = top_parser()
    parser.usage = None
    commands = parser.add_subparsers(metavar="COMMAND", parser_class=Parser)
    for name, (_, help_) in COMMANDS.items():
        add_arguments(name, commands.add_parser(name, help=help_, description=sentence(help_)))
    return parser


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The arguments of a parser and of all parsers below it."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _actions(below)
        else:
            yield action


def _kind(action: Any) -> str | None:
    """The completion of an argument: "FILE", "DIRECTORY" or None, by its metavar."""
    metavar = action.metavar if isinstance(action.metavar, str) else ""
    if metavar == "DIR":
        return "DIRECTORY"
    return "FILE" if metavar.startswith(_FILES) and not action.choices else None
