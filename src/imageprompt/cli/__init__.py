"""The `imageprompt` command: one module for each command, imported when the command is called."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from imageprompt.core import __version__
from imageprompt.core.console import PROGRAM, USAGE_ERROR, Parser, aligned, did_you_mean, examples
from imageprompt.core.errors import ImagePromptError

INTERRUPTED = 128 + signal.SIGINT
BROKEN_PIPE = 128 + 13  # SIGPIPE, which does not exist on every platform

COMMANDS = {
    "demo": ("demo", "generate with references on the bundled stack; one contact sheet"),
    "generate": ("generate", "pictures from reference pictures and text"),
    "presets": ("tables", "what `generate --preset` can take from a reference"),
    "library": ("library", "styles by name: add references once, use them with --style NAME"),
    "check": ("check", "are these good reference pictures, and do they mix?"),
    "faces": ("faces", "list the faces in pictures; save their embeddings and crops"),
    "probe": ("probe", "what each site of a base carries of a reference"),
    "inspect": ("files", "what an adapter file is, whether it is complete, how to load it"),
    "validate": ("files", "every problem of an adapter file, one line each"),
    "convert": ("files", "an adapter file or training checkpoint in another layout"),
    "diff": ("files", "which weights of two adapter files differ, and by how much"),
    "train": ("train", "train an adapter on pictures with captions"),
    "build-cache": ("train", "encode a training set once, into its cache"),
    "hosts": ("tables", "the base architectures that are known"),
    "variants": ("tables", "the adapter architectures that are known"),
    "doctor": ("doctor", "versions, devices and a self-test"),
    "completion": ("completion", "print a completion script for bash, zsh or tcsh"),
}
"""Command -> its module in this package, and its line in the help.

The module has a function `add_<command>` that adds the command's arguments to a parser.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code. Every error a user can cause is one line."""
    try:
        options = _parse(sys.argv[1:] if arguments is None else arguments)
        _configure()
        code: int = options.run(options)
        sys.stdout.flush()
        return code
    except ImagePromptError as error:
        return _fail(str(error))
    except BrokenPipeError:
        # The reader has left: nothing may be flushed into the pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except OSError as error:  # a full disk, a folder that disappeared: the system's own words
        return _fail(" ".join(str(error).split()))
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted", file=sys.stderr)
        return INTERRUPTED


def _fail(message: str) -> int:
    print(f"{PROGRAM}: error: {message}", file=sys.stderr)
    return USAGE_ERROR


# ── arguments ───────────────────────────────────────────────────────────────────────────────────


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Only the parser of the command that is called is built."""
    if arguments and arguments[0] in COMMANDS:
        return command_parser(arguments[0]).parse_args(arguments[1:])
    top = top_parser()
    if not arguments:
        top.print_help()
        top.exit()
    if not arguments[0].startswith("-"):
        top.error(f"unknown command {arguments[0]}{did_you_mean(arguments[0], COMMANDS)}")
    top.parse_args(arguments)  # --help and --version end here, unknown flags too
    top.error(f"no command after {' '.join(arguments)}")


def top_parser() -> Parser:
    """The parser of `imageprompt` itself, without those of its commands."""
    commands = aligned(((name, help_) for name, (_, help_) in COMMANDS.items()), indent="    ")
    parser = Parser(
        prog=PROGRAM,
        usage=f"{PROGRAM} COMMAND ...",
        description="Image prompts for diffusion models: pictures from pictures and text.",
        epilog="commands:\n"
        + "\n".join(commands)
        + f"\n\n{PROGRAM} COMMAND --help explains a command.\n\n"
        + examples(
            "imageprompt demo",
            'imageprompt generate --reference cat.jpg --prompt "in the snow" --num-images 4',
            "imageprompt generate --recipe outputs/0001.png",
            "imageprompt inspect adapter.safetensors",
        ),
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def command_parser(name: str) -> Parser:
    """The parser of one command."""
    parser = Parser(prog=f"{PROGRAM} {name}", description=sentence(COMMANDS[name][1]))
    add_arguments(name, parser)
    return parser


def add_arguments(name: str, parser: argparse.ArgumentParser) -> None:
    """Import a command's module and add its arguments to a parser."""
    module = import_module(f"{__name__}.{COMMANDS[name][0]}")
    getattr(module, f"add_{name.replace('-', '_')}")(parser)


def sentence(text: str) -> str:
    """A line of the help as the description of a command."""
    return f"{text[0].upper()}{text[1:]}{'' if text.endswith('?') else '.'}"


def _configure() -> None:
    """Set up the process: one-line warnings without notes for developers, and sleeping threads."""

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        print(f"{PROGRAM}: warning: {' '.join(str(message).split())}", file=sys.stderr)

    # Read when torch is first loaded: its threads sleep instead of spinning while they wait for one
    # another, which costs nothing here and saves a factor of five on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    warnings.showwarning = show
    warnings.simplefilter("ignore", FutureWarning)
