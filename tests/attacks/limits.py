"""The limits of a child process that handles an attack, and what it used of them."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

CPU_SECONDS = 2
MEMORY = 300 * 2**20
"""Bytes over what the process had before it met the attack."""
WALL_SECONDS = 10
"""Nothing waits: longer than this is a hang."""

_BACKSTOP = 1200 * 2**20
"""Bytes more than this are not allocated at all, so that the machine survives a bomb."""
_LARGEST_FILE = 2**30


class Meter:
    """Memory and CPU time of this process from now on."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is the current size again
        self._idle, self._start = status("VmRSS"), cpu_time()

    def peak(self) -> int:
        """Bytes that this process had at most, beyond what it began with."""
        return max(0, status("VmHWM") - self._idle)

    def cpu(self) -> float:
        return cpu_time() - self._start


def limit_memory() -> None:
    """Memory beyond any reason is refused, whatever asks for it."""
    _set(resource.RLIMIT_DATA, status("VmData") + _BACKSTOP)
    _set(resource.RLIMIT_CORE, 0)


@contextlib.contextmanager
def inside() -> Iterator[None]:
    """Inside, no file grows beyond any reason, and this process dies by SIGPROF after
    CPU_SECONDS and a little."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (_LARGEST_FILE, hard))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS + 0.3)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def cpu_time() -> float:
    """Of this process and of those that it started and waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def status(name: str) -> int:
    """Bytes that /proc/self/status gives under this name."""
    with open("/proc/self/status", encoding="ascii") as stream:  # noqa: PTH123 - much faster
        for line in stream:
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    raise KeyError(name)


def _set(kind: int, limit: int) -> None:
    resource.setrlimit(kind, (limit, limit))
