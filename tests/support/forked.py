"""Processes forked from this one, which has imported torch, diffusers and transformers already.

They start in milliseconds instead of seconds. A test of what importing those libraries does, of
memory, or of a variable that they read on import needs `subprocess` instead.
"""

from __future__ import annotations

import atexit
import faulthandler
import gc
import inspect
import logging
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import IO, Any, NoReturn

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

    def __del__(self) -> None:
        if self.process.is_alive():
            self.process.kill()


def run(code: str, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program to its end."""
    return Program(code, *arguments, cwd=cwd).wait()


class Popen(subprocess.Popen[Any]):
    """`subprocess.Popen` that forks this process where a Python program is to start, and so does
    what that program starts. Other programs start as ever. Modules stay as they are here."""

    def _execute_child(self, *arguments: Any) -> None:
        execute: Any = super()._execute_child  # type: ignore[misc]
        given = inspect.signature(execute).bind(*arguments).arguments
        if isinstance(given["args"], str) or given["args"][0] != sys.executable:
            execute(*arguments)
            return
        pipes = [given[name] for name in _PIPES]
        with warnings.catch_warnings():  # as in `start`
            warnings.filterwarnings("ignore", "This process .* is multi-threaded")
            self.pid = os.fork()
        if self.pid == 0:
            _become(given, pipes[0], pipes[3], pipes[5])
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]


_PIPES = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
"""As `subprocess` names the ends of its pipes."""


def _become(given: dict[str, Any], *streams: int) -> NoReturn:
    """Be the program of a command, in the child: its streams, variables, folder and exit code."""
    code = 1
    try:
        if given.get("start_new_session") or given.get("unused_start_new_session"):
            os.setsid()
        _take(streams)
        if given["env"] is not None:
            os.environ.clear()
            os.environ.update({os.fsdecode(k): os.fsdecode(v) for k, v in given["env"].items()})
        if given["cwd"] is not None:
            os.chdir(given["cwd"])
        _forget_the_tests()
        _call(_run_command, ([str(word) for word in given["args"][1:]],))
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        os._exit(code)


def _take(streams: tuple[int, ...]) -> None:
    """Have these as stdin, stdout and stderr, where they are given, and no other file open."""
    for number, stream in enumerate(streams):
        if stream != -1:
            os.dup2(stream, number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, "w" if number else "r", encoding="utf-8", closefd=False)  # noqa: SIM115
        for number in range(3)
    )


def _forget_the_tests() -> None:
    """What pytest set in this interpreter; and nothing of the parent's is ever closed or freed."""
    gc.freeze()
    atexit._clear()
    faulthandler.disable()
    subprocess.Popen = Popen  # type: ignore[misc]
    logging.getLogger().handlers.clear()
    sys.excepthook, sys.unraisablehook = sys.__excepthook__, sys.__unraisablehook__
    threading.excepthook = threading.__excepthook__


def _run_command(words: list[str]) -> None:
    """`[-P] -c CODE ...`, `-m MODULE ...` or `FILE ...`."""
    first, *words = words[words[0] == "-P" :]
    if first not in ("-c", "-m"):
        sys.argv = [first, *words]
        runpy.run_path(first, run_name="__main__")
        return
    name, *more = words
    sys.argv = [first, *more]
    if first == "-c":
        exec(compile(name, "<string>", "exec"), {"__name__": "__main__"})
    else:
        runpy.run_module(name, run_name="__main__", alter_sys=True)


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
