"""`python -m bundled_stack`: trains the tiny stack anew, resumable at any moment.

Each stage runs in processes of its own, one a core; what is finished is not done again, what was
interrupted goes on from its newest checkpoint. Times are minutes of a 2026 server CPU.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bundled_stack import export, pool, roles

MINUTES = {"vae": 20.0, "vision": 10.0, "judging": 5.0, "base": 60.0, "decoder": 10.0}
ADAPTER_STEPS = 6000
PROBED = 96
SETTINGS = {
    "OMP_NUM_THREADS": "1",
    # large blocks are kept for the next step instead of going back to the system: 6-26 % faster
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
}

Command = Sequence[str]


def together(*chains: Sequence[Command]) -> None:
    """Run chains of stages side by side, the stages of a chain in turn; then stop at a failure."""
    running = [_start(chain) for chain in chains]
    codes = [process.wait() for process in running]
    if any(codes):
        raise SystemExit(f"a stage failed (exit codes {codes}); run the same command to go on")


def _start(chain: Sequence[Command]) -> subprocess.Popen[bytes]:
    """One process that runs the stages of a chain in turn."""
    lines = [f"{sys.executable} -m bundled_stack.{' '.join(stage)}" for stage in chain]
    return subprocess.Popen(["sh", "-c", " && ".join(lines)], env=os.environ | SETTINGS)


def main() -> None:
    """All stages."""
    parser = argparse.ArgumentParser(prog="python -m bundled_stack", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/tiny-stack"))
    parser.add_argument("--time", type=float, default=1.0, help="factor on every training time")
    parser.add_argument("--target", type=Path, default=export.STACK, help="folder to write")
    options = parser.parse_args()
    work = str(options.work)
    minutes = {name: str(value * options.time) for name, value in MINUTES.items()}
    for index in range(pool.SHARDS):
        pool.make_shard(options.work / "pool", index)
    pool.make_shard(options.work / "pool-judge", 0, split="judge")
    together(
        [["vae", work, minutes["vae"]]],
        [["vision", work, minutes["vision"]], ["judging", work, minutes["judging"]]],
    )
    together(*([["latents", work, part, "2"]] for part in "01"))
    together(*([["features", work, part, "2"]] for part in "01"))
    (options.work / "meeting").unlink(missing_ok=True)
    together(*([["base", work, minutes["base"], "--rank", part, "--world", "2"]] for part in "01"))
    steps = str(round(ADAPTER_STEPS * options.time))
    together(*([["adapters", work, name, steps]] for name in ("base", "plus")))
    together([["decoder", work, minutes["decoder"]]])
    print(f"{export.export(options.work, options.target):,} bytes in {options.target}")
    probed = max(2, round(PROBED * min(options.time, 1.0)))
    print(f"roles of its sites: {roles.state_roles(options.target, probed)}")


if __name__ == "__main__":
    main()
