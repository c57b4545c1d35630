"""All stages of the stack for larger scenes, in turn; resumable at any time.

Times are CPU minutes of a server of 2026 whose cores have AVX-512 and bf16.
"""

from __future__ import annotations

from pathlib import Path

from bundled_stack.grown import pool
from bundled_stack.grown.export import STACK, export
from bundled_stack.stages import run_parallel

COUNT, VISION_COUNT, JUDGE_COUNT, REFERENCES = 48_000, 132_000, 40_000, 24_000  # pictures
MINUTES = {"judge": 22.0, "vae": 13.0, "vision": 168.0, "base": 195.0}
ADAPTER_STEPS = 24_000


def train_grown(work: Path, time: float, target: Path) -> None:
    """Train everything and write the stack below `target`; `time` is a factor for all times."""
    pools = [("train", count) for count in (COUNT, VISION_COUNT, 2000)]
    for split, count in (*pools, ("judge", JUDGE_COUNT), ("test", 2000)):
        pool.make(work, split, count, processes=2)
    folder, drawn = str(work), ["--count", str(COUNT)]
    minutes = {name: str(value * time) for name, value in MINUTES.items()}
    run_parallel(
        [["grown.judge", folder, minutes["judge"], "--count", str(JUDGE_COUNT)]],
        [["grown.vae", folder, minutes["vae"], *drawn]],
    )
    run_parallel([["grown.vision", folder, minutes["vision"], "--count", str(VISION_COUNT)]])
    (work / "rendezvous").unlink(missing_ok=True)
    pair = ["--world", "2", "--compiled"]
    run_parallel(
        *([["grown.base", folder, minutes["base"], *drawn, "--rank", part, *pair]] for part in "01")
    )
    sizes = ["--count", str(REFERENCES), "--total", str(COUNT)]
    run_parallel(*([["grown.features", folder, part, "2", *sizes]] for part in "01"))
    run_parallel([["grown.adapters", folder, str(round(ADAPTER_STEPS * time)), *sizes]])
    stack = target / STACK.name
    print(f"{export(work, COUNT, stack):,} bytes in {stack}")
