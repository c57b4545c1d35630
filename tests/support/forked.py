"""Processes forked from this one, which has imported torch, diffusers and transformers already.

They start in milliseconds instead of seconds. A test of what importing those libraries does, of
memory, or of a variable that they read on import needs `subprocess` instead.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import IO, Any

CONTEXT = get_context("fork")


def start(function: Callable[..., Any], *arguments: Any) -> BaseProcess:
    """A process that has begun to call a function."""
    process = CONTEXT.Process(target=_call, args=(function, arguments))
    with warnings.catch_warnings():
        # of Python 3.12: xdist and torch have threads here; the child needs none of them
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        process.start()
    return process


class Program:
    """A running Python program, given as text. It imports this package's modules anew.

    One that still runs when its test ends is killed.
    """

    def __init__(self, code: str, *arguments: str, cwd: Path | None = None) -> None:
        self._command = ["-c", *arguments]
        self._streams = [tempfile.TemporaryFile("w+") for _ in ("out", "err")]  # noqa: SIM115
        numbers = [stream.fileno() for stream in self._streams]
        self.process = start(_run, code, self._command, cwd, numbers)

    def wait(self, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """The program's exit code and what it printed; a program that hangs is killed."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            raise subprocess.TimeoutExpired(self._command, timeout)
        out, err = map(_content, self._streams)
        return subprocess.CompletedProcess(self._command, self.process.exitcode, out, err)


def run(code: str, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program to its end."""
    return Program(code, *arguments, cwd=cwd).wait()

    def __del__(self) -> None:
        if self.process.is_alive():
            self.process.kill()


def _content(stream: IO[str]) -> str:
    with stream:
        stream.seek(0)
        return stream.read()


def _call(function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """As in a new interpreter: default signals and warnings; one thread, others are not forked."""
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    warnings.resetwarnings()
    for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", category)
    function(*arguments)


def _run(code: str, command: list[str], cwd: Path | None, streams: list[int]) -> None:
    for number, stream in enumerate(streams, 1):
        os.dup2(stream, number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8") for number in (1, 2))
    sys.argv = command
    if cwd is not None:
        os.chdir(cwd)
    for name in [name for name in sys.modules if name.partition(".")[0] == "imageprompt"]:
        del sys.modules[name]
    exec(compile(code, "<program>", "exec"), {"__name__": "__main__"})
