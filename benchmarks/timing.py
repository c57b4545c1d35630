"""Process CPU time of a call, and the conditions it was measured under."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import torch


def cpu_seconds(call: Callable[[], object]) -> float:
    """CPU time of all threads of this process during one call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def conditions() -> str:
    """The conditions of a measurement, in one line."""
    model = "unknown CPU"
    try:
        with open("/proc/cpuinfo") as file:  # noqa: PTH123
            model = next(
                line.split(":", 1)[1].strip() for line in file if line.startswith("model name")
            )
    except (OSError, StopIteration):
        pass
    load = os.getloadavg()[0]
    return (
        f"{model}, {os.cpu_count()} cores, {torch.get_num_threads()} thread(s), "
        f"load {load:.1f}, torch {torch.__version__}, nice {os.nice(0)}"
    )
