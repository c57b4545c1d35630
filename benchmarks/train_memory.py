"""Peak memory of training, each candidate in a process of its own: SD1.5 Plus 512x512, SDXL Plus.

The reference recipe holds its encoders and a float32 denoiser; ours reads cached features. The peak
is that of the whole process (VmHWM: Python, torch and loading included). Also reported: the CPU
time of a step, and what gradient checkpointing adds to it; processes take turns.

    python benchmarks/train_memory.py [--steps 3] [--turns 2] [--only NAME] [--threads 1] [--quick]
                                      [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from timing import conditions
from training_parts import PARTS, FeatureExtractors, Ours, Reference

Row = dict[str, Any]


@dataclass(frozen=True)
class Candidate:
    """What one process trains."""

    base: str
    side: int
    ours: bool = True
    checkpointing: bool = False
    goal: str = "-"


CANDIDATES = {
    "reference": Candidate("sd15", 512, ours=False),
    "ours": Candidate("sd15", 512),
    "ours, checkpointing": Candidate("sd15", 512, checkpointing=True, goal="<= 3.3 GB"),
    "ours, SDXL, checkpointing": Candidate("sdxl", 256, checkpointing=True, goal="completes"),
}


def peak() -> float:
    """The largest resident size of this process so far, in GB (10^9 bytes)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    kilobytes = next(line.split()[1] for line in lines if line.startswith("VmHWM"))
    return int(kilobytes) * 1024 / 1e9


def work(candidate: Candidate, steps: int) -> Row:
    """Train `steps` steps in this process, after one that is not timed."""
    parts = PARTS[candidate.base]
    runner: Any
    if candidate.ours:
        options = {"checkpointing": candidate.checkpointing}
        runner = Ours(parts, "plus", candidate.side, **options)
    else:
        runner = Reference(parts, "plus", FeatureExtractors(parts, "plus", candidate.side))
    seconds, losses = [], []
    for _ in range(steps + 1):
        start = time.process_time()
        losses.append(runner.step())
        seconds.append(time.process_time() - start)
    return {"peak": peak(), "cpu": statistics.median(seconds[1:]), "losses": losses}


def run_process(name: str, steps: int, threads: int) -> Row:
    """The row of one candidate, measured in its own process."""
    command = [sys.executable, __file__, "--worker", name, "--steps", str(steps)]
    command += ["--threads", str(threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr.strip().splitlines()[-1]}")
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return {"what": name, **row}


def main() -> None:
    """Print one line per candidate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worker", choices=CANDIDATES, help=argparse.SUPPRESS)
    parser.add_argument("--only", choices=CANDIDATES, action="append")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="one turn of one step, no SDXL")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.worker:
        print(json.dumps(work(CANDIDATES[args.worker], args.steps)))
        return
    steps, turns = (1, 1) if args.quick else (args.steps, args.turns)
    names = args.only or [n for n in CANDIDATES if not (args.quick and "SDXL" in n)]
    before = conditions()
    rows = [run_process(name, steps, args.threads) for _ in range(turns) for name in names]
    print(f"Plus, batch 1; {before}\n{'':28}{'peak GB':>9}{'CPU s a step':>14}  goal")
    medians = {}
    for name in names:
        measured = [row for row in rows if row["what"] == name]
        medians[name] = statistics.median(row["cpu"] for row in measured)
        highest = max(row["peak"] for row in measured)
        print(f"{name:28}{highest:>9.2f}{medians[name]:>14.2f}  {CANDIDATES[name].goal}")
    if {"ours", "ours, checkpointing"} <= medians.keys():
        slower = medians["ours, checkpointing"] / medians["ours"] - 1
        print(f"checkpointing makes a step {slower:.0%} slower; goal <= 15 %")
    if args.json:
        args.json.write_text(json.dumps({"conditions": before, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
