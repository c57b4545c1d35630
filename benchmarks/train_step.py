"""Time of a training step compared with the reference recipe: SD1.5 config, batch 1.

Weights are random. Three candidates take turns, step by step, in one process: the reference recipe
(encode everything in every step, float32 denoiser under bfloat16 autocast, plain AdamW), ours
without a cache (the same encoders in every step) and ours with cached features. Process CPU time,
by default on one thread; ratios are taken within a round, and their median is reported. Encoding
alone is timed as well: what caching costs per picture, and after how many epochs it has paid off.

    python benchmarks/train_step.py [--side 256] [--side 512] [--variant base|plus] [--rounds 5]
                                    [--threads 1] [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from timing import conditions
from training_parts import PARTS, FeatureExtractors, Ours, Parts, Reference

GOALS = {256: 2.6, 512: 1.8}
Row = dict[str, Any]


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """CPU seconds and seconds of one call."""
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    return time.process_time() - cpu, time.perf_counter() - wall


def measure(parts: Parts, variant: str, side: int, rounds: int) -> list[Row]:
    """One row per candidate; a first round warms up and is not counted."""
    encoders = FeatureExtractors(parts, variant, side)
    reference, ours = Reference(parts, variant, encoders), Ours(parts, variant, side)
    racers: dict[str, Callable[[], object]] = {
        "reference": reference.step,
        "ours, no cache": partial(ours.step, encoders),
        "ours, cached": ours.step,
        "encoding alone": encoders,
    }
    turns = []
    for turn in range(rounds + 1):
        names = list(racers) if turn % 2 == 0 else list(reversed(racers))
        turns.append({name: timed(racers[name]) for name in names})
    rows = []
    for name in racers:
        cpu = [turn[name][0] for turn in turns[1:]]
        ratios = [turn["reference"][0] / turn[name][0] for turn in turns[1:]]
        rows.append(
            {
                "what": name,
                "side": side,
                "cpu": statistics.median(cpu),
                "wall": statistics.median(turn[name][1] for turn in turns[1:]),
                "faster": statistics.median(ratios),
                "ratios": ratios,
            }
        )
    return rows


def break_even(rows: list[Row]) -> float:
    """Epochs after which filling a cache has cost less than encoding in every step."""
    cpu = {row["what"]: row["cpu"] for row in rows}
    saved = cpu["ours, no cache"] - cpu["ours, cached"]
    return float(cpu["encoding alone"] / saved) if saved > 0 else float("inf")


def main() -> None:
    """Print one table per size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, action="append")
    parser.add_argument("--base", default="sd15", help=argparse.SUPPRESS)
    parser.add_argument("--variant", choices=("base", "plus"), default="base")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="2 rounds")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    before, all_rows = conditions(), []
    for side in args.side or (256, 512):
        rows = measure(PARTS[args.base], args.variant, side, 2 if args.quick else args.rounds)
        all_rows += rows
        print(f"{args.base} {args.variant}, {side}x{side}, batch 1; {before}")
        print(f"{'':16}{'CPU s':>8}{'wall s':>8}{'faster':>8}")
        for row in rows:
            print(f"{row['what']:16}{row['cpu']:>8.2f}{row['wall']:>8.2f}{row['faster']:>8.2f}")
        goal = f"; goal: {GOALS[side]} times faster" if side in GOALS else ""
        print(f"the cache pays off after {break_even(rows):.1f} epochs{goal}\n", flush=True)
    if args.json:
        args.json.write_text(json.dumps({"conditions": before, "rows": all_rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
