"""Child processes that may die: forked from a server that has loaded what they need."""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

from . import limits

HERE = Path(__file__).resolve().parent

_PATIENCE = 300.0
"""Seconds that a child may compute without a word, where others use the machine."""
_POLL = 0.5
"""Seconds between two looks at a child that says nothing."""

# ── servers ─────────────────────────────────────────────────────────────────────────────────────


_END = "end of "


def serve(module: str, *arguments: str) -> Iterator[str]:
    """The lines that a module prints, run as a process with one thread and no network.

    It is forked from one that has loaded what they all need, and which all calls share.
    """
    parent = _parent()
    assert parent.stdin is not None
    assert parent.stdout is not None
    print(json.dumps([module, *arguments]), file=parent.stdin, flush=True)
    end = ""
    try:
        for line in parent.stdout:
            if line.startswith(_END):
                end = line
                break
            yield line
    finally:
        if not end:  # it died, or the caller has seen enough
            parent.kill()
            parent.communicate()
            _parent.cache_clear()
    if end != f"{_END}{module}: 0\n":
        raise RuntimeError(f"the server failed: {end or 'killed'}")


@lru_cache
def _parent() -> subprocess.Popen[str]:
    """The process whose children are servers; it ends with this one."""
    place = tempfile.TemporaryDirectory(prefix="attacks-")
    Path(place.name, "home").mkdir()
    parent = subprocess.Popen(
        [sys.executable, "-m", "attacks.children"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=_environment(place.name),
    )
    atexit.register(_end, parent, place)
    return parent


def _end(parent: subprocess.Popen[str], place: tempfile.TemporaryDirectory[str]) -> None:
    parent.kill()
    parent.communicate()
    place.cleanup()


def main() -> None:
    """Fork a server for each line on stdin, a module and its arguments, one after the other."""
    results = own_stdout()
    harness = importlib.import_module("attacks.harness")
    load([name for door in harness.table() for name in door.imports])
    load(["attacks.guards", "attacks.mutate", "toy_training"])
    for line in sys.stdin:
        module, *arguments = json.loads(line)
        child = os.fork()
        if not child:
            os.dup2(results.fileno(), 1)
            sys.argv[1:] = arguments
            _run_module(module)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(f"{_END}{module}: {code}", file=results, flush=True)


def _run_module(module: str) -> NoReturn:
    code = 1
    try:
        importlib.import_module(module).main()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


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
        "MPLCONFIGDIR": os.environ.get("MPLCONFIGDIR", str(Path.home() / ".cache/matplotlib")),
        "COLUMNS": "100",
    }


def own_stdout() -> Any:
    """This process' stdout, for results alone: what others print goes to stderr."""
    results = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="backslashreplace")
    os.dup2(2, 1)
    return results


_WITH_THREADS = ("onnxruntime", "diffusers.pipelines.onnx_utils")
"""Modules that start threads as they are imported: no process forks safely after that."""


def load(modules: list[str]) -> bool:
    """Load what a child had to load; is there anything new?"""
    known = len(sys.modules)
    for name in modules:
        if name.startswith(_WITH_THREADS):
            continue
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
    """The whole lines of a pipe, and whether the child has waited for so long.

    Only looks at which it slept, and had not computed since the last one, count: the machine may be
    busy. A child that computes has a limit of CPU time.
    """
    data, late = b"", False
    idle, silent, used = 0, 0, ""
    while not late:
        ready, _, _ = select.select([read], [], [], _POLL)
        if ready:
            part = os.read(read, 1 << 16)
            if not part:
                break
            data, idle, silent = data + part, 0, 0
            continue
        state, spent = _state(child)
        if state == "Z":  # what it started may hold the pipe open
            break
        idle, silent = (idle + 1 if state == "S" and spent == used else 0), silent + 1
        used = spent
        late = idle * _POLL > wall or silent * _POLL > wall + _PATIENCE
    os.close(read)
    return [line.decode() for line in data.split(b"\n")[:-1]], late


def _state(child: int) -> tuple[str, str]:
    """What a process does (R: it runs, S: it sleeps, D: it waits for a disk, Z: it has ended), and
    the CPU time that it has used."""
    fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
    return fields[0], f"{fields[11]} {fields[12]}"


def _why(code: int) -> str:
    if os.WIFSIGNALED(code):
        name = signal.Signals(os.WTERMSIG(code)).name
        if name in ("SIGXCPU", "SIGPROF"):
            return f"took more than {limits.CPU_SECONDS} s of CPU"
        return f"died by {name}"
    return f"ended with {os.WEXITSTATUS(code)}"


if __name__ == "__main__":
    main()
