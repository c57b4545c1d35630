"""How fast an adapter learns on the bundled stack: what the training examples reach, and when.

    python benchmarks/learning.py [--example tiny-base|tiny-plus|tiny-sd3] [--references 96]
                                  [--folder DIR]

Draws scenes and trains the unchanged example from scratch (`imageprompt train`; the time includes
everything it does). The stack's judge then reads the pictures that each checkpoint generates from
held-out references, with an empty text or "a shape", at scale 1; the bundled adapter and the
control without a reference are measured as well. "Reached" is the share of the bundled adapter's
match above the control, for the mean of the five words and for all five at once. Time is wall time
and CPU time of the training process.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import fidelity
from imageprompt.adapter.adapter import Adapter
from imageprompt.core import bundled
from imageprompt.demo import scenes

CHECKPOINTS = 8
EXAMPLES = {
    "tiny-base": (bundled.NAME, "base"),
    "tiny-plus": (bundled.NAME, "plus"),
    "tiny-sd3": (bundled.SD3, "plus"),
}
"""The stack that an example trains on, and the variant."""
Shares = dict[str, float]


def command(*words: str, folder: Path) -> str:
    """Run an imageprompt command; returns what it prints."""
    process = subprocess.run(
        [sys.executable, "-m", "imageprompt", *words],
        cwd=folder,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return process.stdout


def train(
    example: str, folder: Path, steps: int | None, scene_count: int, changes: list[str]
) -> dict[str, float]:
    """Draw scenes, then train; returns wall and CPU seconds of the training."""
    command("demo", "--draw", "scenes", "--num-scenes", str(scene_count), folder=folder)
    config = command("train", "--example", example, folder=folder)
    (folder / "config.yaml").write_text(config)
    total = steps or int(config.split("\nsteps:")[1].split()[0])
    overrides: tuple[str, ...] = (
        f"steps={total}",
        f"checkpoint_every={total // CHECKPOINTS}",
        f"keep={CHECKPOINTS + 1}",
    )
    overrides += ("validate_every=0", "output=run", *changes)
    options = [word for override in overrides for word in ("--set", override)]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    command("train", "config.yaml", *options, folder=folder)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": time.monotonic() - started, "cpu": cpu}


def matches(bench: fidelity.Bench, path: Path) -> Shares:
    """How often each word, and all at once, is transferred by this adapter."""
    adapter = Adapter.load(path, dtype=torch.float32)
    adapter.attach(bench.pipe, encoder=bench.encoder)
    cells = bench.transfer(adapter)["all"]
    adapter.detach()
    return {name: cell["share"] for name, cell in cells.items()}


def reached(shares: Shares, goal: Shares, control: Shares) -> dict[str, float]:
    """Share of the goal that is reached, both above the control: mean of words, and all at once."""

    def mean(of: Shares) -> float:
        return sum(of[name] for name in scenes.ATTRIBUTES) / len(scenes.ATTRIBUTES)

    return {
        "reached words": (mean(shares) - mean(control)) / (mean(goal) - mean(control)),
        "reached all": (shares["all"] - control["all"]) / (goal["all"] - control["all"]),
    }


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--example", choices=tuple(EXAMPLES), default="tiny-plus")
    parser.add_argument("--references", type=int, default=96)
    parser.add_argument("--scenes", type=int, default=6000)
    parser.add_argument("--steps", type=int, help="default: the example's")
    parser.add_argument("--set", action="append", default=[], help="change a key of the example")
    parser.add_argument("--folder", type=Path, help="empty folder to work in; kept")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        spent = train(options.example, folder, options.steps, options.scenes, options.set)
        stack, variant = EXAMPLES[options.example]
        flags = ["--stack", stack, "--count", str(options.references)]
        argv, sys.argv = sys.argv, ["fidelity", *flags]
        bench = fidelity.Bench(fidelity.arguments(), lambda count: None)
        sys.argv = argv
        control = {k: cell["share"] for k, cell in bench.control()["control"].items()}
        goal = matches(bench, Path(bundled.adapter(variant, stack)))
        rows: list[dict[str, Any]] = []
        saved = sorted((folder / "run" / "checkpoints").iterdir(), key=lambda p: int(p.name[5:]))
        for path in [*saved, folder / "run"]:
            shares = matches(bench, path / "adapter.safetensors")
            name = path.name if path in saved else "result"
            rows.append({"what": name} | shares | reached(shares, goal, control))
    columns = [*scenes.ATTRIBUTES, "all"]
    print(
        f"{options.example}: {spent['seconds']:.0f} s, {spent['cpu']:.0f} s of CPU; load {load:.1f}"
    )
    print(f"| | {' | '.join(columns)} | reached: words | reached: all |")
    print("|---" * (len(columns) + 3) + "|")
    for title, shares in (("control", control), ("bundled", goal)):
        print(f"| {title} | {' | '.join(f'{shares[c]:.2f}' for c in columns)} | | |")
    for row in rows:
        figures = [f"{row[c]:.2f}" for c in (*columns, "reached words", "reached all")]
        print(f"| {row['what']} | {' | '.join(figures)} |")
    if options.json:
        report = {"spent": spent, "control": control, "bundled": goal, "rows": rows}
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
