"""`python -m bundled_stack.grown`: train the grown world from scratch; resumable at any time.

Photographs come from the installed packages scikit-image, scikit-learn and matplotlib. Times are
CPU minutes of one core: the judge's samples in them are known to suffice, the others are guesses.
With `--device cuda` they are CPU minutes of the process as well, with many more samples in each.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bundled_stack.__main__ import run_parallel
from bundled_stack.grown import pool

MINUTES = {"judge": 180.0, "vae": 400.0, "base": 400.0}


def main() -> None:
    """Draw the pools, then train judge and autoencoder side by side, then the base."""
    parser = argparse.ArgumentParser(prog="python -m bundled_stack.grown", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/grown-world"))
    parser.add_argument("--time", type=float, default=1.0, help="factor for all training times")
    parser.add_argument("--count", type=int, default=40_000, help="pictures to train on")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    for split in ("judge", "train"):
        pool.make(options.work, split, options.count, processes=2)
    for split in ("train", "test"):
        pool.make(options.work, split, min(2000, options.count), processes=2)
    judge, vae, base = (
        [
            *(f"grown.{name}", str(options.work), str(minutes * options.time)),
            *("--count", str(options.count), "--device", options.device),
        ]
        for name, minutes in MINUTES.items()
    )
    run_parallel([judge], [vae])
    run_parallel([base])


if __name__ == "__main__":
    main()
