"""`python -m bundled_stack`: train the bundled stacks from scratch; resumable at any time.

`--stack bundled` trains the UNet stack with all its parts, `--stack bundled-sd3` the transformer
and the adapters of the SD3 stack, which shares the other parts; so it needs the first one finished.
`--stack bundled-sd3-128` trains the one for larger scenes, from parts of both; it draws with the
photographs of scikit-image, scikit-learn and matplotlib, which must be installed.

Each stage runs in its own processes, one per core. Finished stages are skipped, interrupted ones
resume from their latest checkpoint. Times are CPU minutes of a server of 2026.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bundled_stack import export, pool, roles
from bundled_stack.grown.build import train_grown
from bundled_stack.sd3.export import STACK as SD3_STACK
from bundled_stack.sd3.export import export as export_sd3
from bundled_stack.stages import run_parallel
from imageprompt.core import bundled
from imageprompt.demo import photographs

MINUTES = {
    "vae": 20.0,
    "vision": 10.0,
    "judge": 5.0,
    "base": 60.0,
    "decoder": 10.0,
    "sd3-base": 62.0,
}
ADAPTER_STEPS = 6000
DUAL_STEPS = 1300
SD3_ADAPTER_STEPS, SD3_DUAL_STEPS = 2400, 1800
SD3_SHARDS = 3  # of the pool
PROBE_REFERENCES = 96


def main() -> None:
    """Run all stages of the stacks that are asked for."""
    parser = argparse.ArgumentParser(prog="python -m bundled_stack", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/tiny-stack"))
    parser.add_argument(
        "--stack",
        choices=[*bundled.FOLDERS, "all"],
        default="all",
        help="which to train",
    )
    parser.add_argument("--time", type=float, default=1.0, help="factor for all training times")
    parser.add_argument(
        "--target", type=Path, default=export.STACK.parent, help="folder to write the stacks to"
    )
    options = parser.parse_args()
    if options.stack in (bundled.SD3_128, "all"):
        photographs.load()  # missing ones are told before hours of work
    if options.stack in (bundled.NAME, "all"):
        train_bundled(options)
    if options.stack in (bundled.SD3, "all"):
        train_sd3(options)
    if options.stack in (bundled.SD3_128, "all"):
        train_grown(options.work / "grown", options.time, options.target)


def train_bundled(options: argparse.Namespace) -> None:
    """All parts of the UNet stack."""
    work = str(options.work)
    minutes = {name: str(value * options.time) for name, value in MINUTES.items()}
    for index in range(pool.SHARDS):
        pool.make_shard(options.work / "pool", index)
    pool.make_shard(options.work / "pool-judge", 0, split="judge")
    run_parallel(
        [["vae", work, minutes["vae"]]],
        [["vision", work, minutes["vision"]], ["judge", work, minutes["judge"]]],
    )
    run_parallel(*([["latents", work, part, "2"]] for part in "01"))
    run_parallel(*([["features", work, part, "2"]] for part in "01"))
    (options.work / "rendezvous").unlink(missing_ok=True)
    run_parallel(
        *([["base", work, minutes["base"], "--rank", part, "--world", "2"]] for part in "01")
    )
    steps = str(round(ADAPTER_STEPS * options.time))
    run_parallel(*([["adapters", work, name, steps]] for name in ("base", "plus")))
    run_parallel([["decoder", work, minutes["decoder"]]])
    target = options.target / export.STACK.name
    print(f"{export.export(options.work, target):,} bytes in {target}")
    references = max(2, round(PROBE_REFERENCES * min(options.time, 1.0)))
    print(f"roles of the sites: {roles.state_roles(target, references)}")
    steps = str(round(DUAL_STEPS * options.time))
    run_parallel([["dual", work, steps, "--stack", str(target)]])


def train_sd3(options: argparse.Namespace) -> None:
    """The transformer of the SD3 stack, and its adapters."""
    work = str(options.work)
    for index in range(SD3_SHARDS):
        pool.make_shard(options.work / "pool", index)
    run_parallel(*([["sd3.encode", work, part, "2"]] for part in "01"))
    run_parallel([["sd3.base", work, str(MINUTES["sd3-base"] * options.time)]])
    steps = str(round(SD3_ADAPTER_STEPS * options.time))
    run_parallel(*([["sd3.adapters", work, name, steps]] for name in ("base", "plus")))
    target = options.target / SD3_STACK.name
    print(f"{export_sd3(options.work, target):,} bytes in {target}")
    steps = str(round(SD3_DUAL_STEPS * options.time))
    run_parallel([["sd3.dual", work, steps, "--stack", str(target)]])


if __name__ == "__main__":
    main()
