"""The limits of a child process that handles an attack, and what it used of them."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path

CPU_SECONDS = 2
"""On the machine for which it was set; a slower one gets more (see `costs`)."""
MEMORY = 300 * 2**20
"""Bytes over what the process had before it met the attack."""
WALL_SECONDS = 10
"""Nothing waits: longer than this is a hang."""

_PATIENCE = 3
"""A process dies at this many times CPU_SECONDS: no machine is that slow."""
_YARDSTICK = 0.22
"""Seconds of CPU of `_work` on the machine for which CPU_SECONDS was set."""
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


def costs(cpu: float, peak: int) -> list[str]:
    """What was used beyond the limits: CPU seconds on this machine, bytes."""
    found = []
    if cpu > CPU_SECONDS and cpu > CPU_SECONDS * _slowness():
        found.append(f"took {cpu:.1f} s of CPU")
    if peak > MEMORY:
        found.append(f"needed {peak / 2**20:.0f} MB")
    return found


def _slowness() -> float:
    """How many times as long this machine takes now as the one for which the limit was set."""
    start = time.process_time()
    _work()
    return max(1.0, (time.process_time() - start) / _YARDSTICK)


def _work() -> None:
    """What reading a file mostly is: objects, loops, fresh memory."""
    text = json.dumps([{"name": f"row {i}", "value": [i, i / 7]} for i in range(40_000)])
    for _ in range(2):
        sum(len(one["name"]) for one in json.loads(text))
    sum(i & 7 for i in range(1_000_000))
    for _ in range(12):
        bytearray(2**24)[::4096] = bytes(4096)


def limit_memory() -> None:
    """Memory beyond any reason is refused, whatever asks for it."""
    _set(resource.RLIMIT_DATA, status("VmData") + _BACKSTOP)
    _set(resource.RLIMIT_CORE, 0)


@contextlib.contextmanager
def inside() -> Iterator[None]:
    """Inside, no file grows beyond any reason, and this process dies by SIGPROF long after
    CPU_SECONDS."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (_LARGEST_FILE, hard))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, _PATIENCE * CPU_SECONDS)
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
