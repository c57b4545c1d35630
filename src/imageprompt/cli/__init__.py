"""The `imageprompt` command: one module for each command, imported when the command is called."""

from __future__ import annotations

import _thread
import argparse
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from types import FrameType
from typing import Any

from imageprompt.cli.failures import explain, traceback_wanted
from imageprompt.core import __version__
from imageprompt.core.console import (
    PROGRAM,
    Parser,
    abandon_streams,
    aligned,
    did_you_mean,
    examples,
    log_record,
    note,
    open_streams,
    warn,
)

FAILED = 2
INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM
BROKEN_PIPE = 128 + 13  # SIGPIPE, which does not exist on every platform
_SIGNALS: dict[int, str] = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}

COMMANDS = {
    "demo": ("demo", "generate with references on the bundled stack; one contact sheet"),
    "generate": ("generate", "pictures from reference pictures and text"),
    "workflow": ("workflow", "whole jobs: product pictures, restyling, colourising ... measured"),
    "presets": ("tables", "what `generate --preset` can take from a reference"),
    "library": ("library", "styles by name: add references once, use them with --style NAME"),
    "check": ("check", "are these good reference pictures, and do they mix?"),
    "faces": ("faces", "list the faces in pictures; save their embeddings and crops"),
    "score": ("score", "metrics of pictures that exist, in pairs or as sets"),
    "probe": ("probe", "what each site of a base carries of a reference"),
    "evaluate": ("evaluate", "generate a study of adapters and scales, score it, report"),
    "compare": ("compare", "two adapters picture by picture: which is better, and how sure"),
    "tune": ("tune", "the scale and preset with the best balance of likeness and text"),
    "rate": ("rate", "a blind page on which people rate pictures"),
    "ratings": ("rate", "what the raters say: means, preferences, agreement"),
    "serve": ("serve", "the HTTP API and the page, on this machine"),
    "batch": ("batch", "many rows to pictures; killed and resumed at any moment"),
    "inspect": ("files", "what an adapter file is, whether it is complete, how to load it"),
    "validate": ("files", "every problem of an adapter file, one line each"),
    "convert": ("files", "an adapter file or training checkpoint in another layout"),
    "diff": ("files", "which weights of two adapter files differ, and by how much"),
    "train": ("train", "train an adapter on pictures with captions"),
    "build-cache": ("train", "encode a training set once, into its cache"),
    "hosts": ("tables", "the base architectures that are known"),
    "variants": ("tables", "the adapter architectures that are known"),
    "plan": ("plan", "memory and time of a base with an adapter, before anything is downloaded"),
    "compress": ("compress", "a lighter adapter for one base: K' and V' in low rank, int8"),
    "export": ("export", "a base with image prompts as inputs, for other runtimes"),
    "quantize": ("quantize", "an exported base in fewer bits: int8, W8A8, int4"),
    "doctor": ("doctor", "versions, devices and a self-test"),
    "completion": ("completion", "print a completion script for bash, zsh or tcsh"),
}
"""Command -> its module in this package, and its line in the help.

The module has a function `add_<command>` that adds the command's arguments to a parser.
"""

_EXIT_CODES = """exit codes:
    0    done
    1    done, and problems were found (inspect, validate, diff, check, score, faces, doctor)
    2    an error: one line says what is wrong
    130  interrupted
    141  the reader of the output has left
    143  ended by SIGTERM"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code. Every error is one line, whatever happens."""
    open_streams()
    code = FAILED
    try:
        with _signals_raise() as received:
            try:
                code = _run(sys.argv[1:] if arguments is None else arguments)
            except KeyboardInterrupt:
                received = received or [signal.SIGINT]
            except BrokenPipeError:
                raise
            except Exception as error:  # of libraries that an interruption has upset, too
                if not received:
                    note(f"{PROGRAM}: error: {explain(error)}")
        if received:
            note(f"{PROGRAM}: {_SIGNALS[received[0]]}")
            code = 128 + received[0]
    except BrokenPipeError:  # the reader has left
        return BROKEN_PIPE
    except KeyboardInterrupt:  # again
        return INTERRUPTED
    except OSError:  # stderr cannot be written to either
        return FAILED
    finally:
        abandon_streams()
    return code


@contextmanager
def _signals_raise() -> Iterator[list[int]]:
    """SIGTERM ends a command as Ctrl-C does, so that what is half written is removed.

    Yields the signals received: a library may turn the exception into another one, or lose it. A
    second SIGTERM kills.
    """
    process, received = os.getpid(), list[int]()

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGTERM:
            signal.signal(number, signal.SIG_DFL)
            if os.getpid() != process:  # a child of this process
                os.kill(os.getpid(), number)
        received.append(number)
        raise KeyboardInterrupt

    with ExitStack() as handlers:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                before = signal.getsignal(number)
                if before in (signal.SIG_DFL, signal.default_int_handler):
                    signal.signal(number, handle)
                    handlers.callback(signal.signal, number, before)
        yield received


def _run(arguments: Sequence[str]) -> int:
    """Run a command, and print all that it has to say."""
    try:
        _configure()
        options = _parse(arguments)
        code: int = options.run(options)
    finally:
        sys.stdout.flush()
    return code


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
        + f"\n\n{PROGRAM} COMMAND --help explains a command.\n\n{_EXIT_CODES}\n\n"
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
    """Set up the process: warnings, logs and what goes wrong unseen on one line each, for users."""
    # Read when torch is first loaded: its threads sleep instead of spinning while they wait for one
    # another, which costs nothing here and saves a factor of five on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    warnings.showwarning = warn
    warnings.simplefilter("ignore", FutureWarning)
    logging.setLogRecordFactory(log_record)
    threading.excepthook = _ended_thread
    sys.unraisablehook = _ignored


def _ended_thread(ended: threading.ExceptHookArgs) -> None:
    if ended.exc_value is not None:
        note(f"{PROGRAM}: warning: a thread ended: {explain(ended.exc_value)}")


def _ignored(ignored: Any) -> None:
    """An exception while an object was deleted: nothing that a user can act on.

    If it was Ctrl-C, which Python lost there, it is sent again: from a thread, since this function
    is still a part of the deletion.
    """
    if ignored.exc_type is KeyboardInterrupt:
        threading.Timer(0.01, _thread.interrupt_main).start()
    elif traceback_wanted():
        note(f"{PROGRAM}: warning: ignored: {ignored.exc_value!r} in {ignored.object!r}")
