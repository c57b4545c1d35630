"""Child processes that may die: forked from a server that has loaded what they need."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from . import limits

HERE = Path(__file__).resolve().parent

_PATIENCE = 60.0
"""Seconds beyond its time that a child may compute, where others use the machine."""

# ── servers ─────────────────────────────────────────────────────────────────────────────────────


def serve(module: str, *arguments: str) -> Iterator[str]:
    """The lines that a module prints, run as a process with one thread and no network."""
    with tempfile.TemporaryDirectory(prefix="attacks-") as place:
        Path(place, "home").mkdir()
        server = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdout=subprocess.PIPE,
            text=True,
            env=_environment(place),
        )
        assert server.stdout is not None
        try:
            yield from server.stdout
        finally:
            server.stdout.close()
            if server.poll() is None and sys.exc_info()[0] is not None:
                server.terminate()
            code = server.wait()
    if code:
        raise RuntimeError(f"the server of {module} ended with {code}")


def _environment(place: str) -> dict[str, str]:
    paths = (HERE.parents[1], HERE.parent, HERE.parent / "support")
    threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
        **dict.fromkeys(threads, "1"),
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "PYTHONIOENCODING": "utf-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "TMPDIR": place,
        "HOME": f"{place}/home",
        "XDG_CACHE_HOME": f"{place}/home/.cache",
        "HF_HOME": f"{place}/home/huggingface",
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "100",
    }


def own_stdout() -> Any:
    """This process' stdout, for results alone: what others print goes to stderr."""
    results = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="backslashreplace")
    os.dup2(2, 1)
    return results


def load(modules: list[str]) -> bool:
    """Load what a child had to load; is there anything new?"""
    known = len(sys.modules)
    for name in modules:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    return len(sys.modules) > known


def loaded_since(count: int, folder: Path) -> list[str]:
    """The modules after the first `count`, but for those of an attack.

    The others are not looked at: every object that a child touches is a page that it copies.
    """
    names = list(islice(reversed(sys.modules), max(len(sys.modules) - count, 0)))
    places = {name: getattr(sys.modules[name], "__file__", None) or "" for name in names}
    return sorted(name for name in names if not places[name].startswith(str(folder)))


# ── children ────────────────────────────────────────────────────────────────────────────────────


@dataclass
class End:
    """How a child process ended."""

    why: str
    cpu: float


def in_child(
    work: Callable[[Callable[[str], None]], None], folder: Path, wall: float
) -> tuple[list[str], End]:
    """Fork, do the work in the child, and return the lines that it sent.

    The child is stopped, with everything that it started, if it waits and has sent nothing for
    `wall` seconds. What it prints goes to `folder`/stream-1 and -2.
    """
    threads = [(task / "comm").read_text() for task in Path("/proc/self/task").iterdir()]
    if len(threads) > 1:
        raise RuntimeError(f"no fork is safe beside {threads}: {threading.enumerate()}")
    gc.collect()
    gc.freeze()
    sys.stdout.flush()
    sys.stderr.flush()
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        _run_child(work, folder, write)
    os.close(write)
    with contextlib.suppress(OSError):
        os.setpgid(child, child)
    lines, late = _receive(read, child, wall)
    with contextlib.suppress(OSError):
        os.killpg(child, signal.SIGKILL)
    _, code, usage = os.wait4(child, 0)
    cpu = usage.ru_utime + usage.ru_stime
    why = f"hung: killed after {wall:g} s" if late else _why(code)
    return lines, End(f"{why} ({cpu:.1f} s of CPU)", cpu)


def print_into(folder: Path) -> None:
    """From now on, what this process prints goes to two new files in a folder."""
    for stream in (1, 2):
        file = os.open(folder / f"stream-{stream}", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, stream)
        os.close(file)


def _run_child(work: Callable[[Callable[[str], None]], None], folder: Path, write: int) -> None:
    """In the child; it never returns."""

    def send(text: str) -> None:
        data = f"{text}\n".encode()
        while data:
            data = data[os.write(write, data) :]

    code = 1
    try:
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        print_into(folder)
        work(send)
        code = 0
    except BaseException:
        with contextlib.suppress(BaseException):
            traceback.print_exc()
            sys.stderr.flush()
    finally:
        os._exit(code)


def _receive(read: int, child: int, wall: float) -> tuple[list[str], bool]:
    """The whole lines of a pipe, and whether the child waited when its time was up.

    A child that is computing has a limit of CPU time instead: the machine may be busy.
    """
    data, until, late = b"", time.monotonic() + wall, False
    while True:
        ready, _, _ = select.select([read], [], [], max(0.1, until - time.monotonic()))
        if ready:
            part = os.read(read, 1 << 16)
            if not part:
                break
            data, until = data + part, time.monotonic() + wall
        elif _has_ended(child):  # what it started may hold the pipe open
            break
        elif time.monotonic() > until:
            late = not _is_computing(child) or time.monotonic() > until + _PATIENCE
            if late:
                break
    os.close(read)
    return [line.decode() for line in data.split(b"\n")[:-1]], late


def _state(child: int) -> str:
    return Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]


def _has_ended(child: int) -> bool:
    return _state(child) == "Z"


def _is_computing(child: int) -> bool:
    return _state(child) == "R"


def _why(code: int) -> str:
    if os.WIFSIGNALED(code):
        name = signal.Signals(os.WTERMSIG(code)).name
        if name in ("SIGXCPU", "SIGPROF"):
            return f"took more than {limits.CPU_SECONDS} s of CPU"
        return f"died by {name}"
    return f"ended with {os.WEXITSTATUS(code)}"
