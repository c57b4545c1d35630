"""The stages of a build: how one is called, and chains of them side by side, one per core."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    # keep large blocks for the next step instead of returning them to the system: 6-26 % faster
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
}

Command = Sequence[str]


def run_parallel(*chains: Sequence[Command]) -> None:
    """Run chains of stages in parallel, the stages of a chain in turn. Exits if one fails."""
    running = [_start(chain) for chain in chains]
    codes = [process.wait() for process in running]
    if any(codes):
        raise SystemExit(
            f"a stage failed (exit codes {codes}); run the same command again to resume"
        )


def _start(chain: Sequence[Command]) -> subprocess.Popen[bytes]:
    """Start one process that runs the stages of a chain in turn."""
    lines = [f"{sys.executable} -m bundled_stack.{' '.join(stage)}" for stage in chain]
    return subprocess.Popen(["sh", "-c", " && ".join(lines)], env=os.environ | ENVIRONMENT)


def training_options(*, batch: int, rate: float) -> argparse.ArgumentParser:
    """What a stage that trains for a time on a pool is called with."""
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("minutes", type=float)
    parser.add_argument("--count", type=int, default=65_536, help="pictures to train on")
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--rate", type=float, default=rate)
    parser.add_argument("--device", default="cpu")
    return parser
