"""`imageprompt batch` with kills at random: is every row there once? And rows a second.

    python benchmarks/batch.py                         # 20,000 rows, 100 kills: hours on two cores
    python benchmarks/batch.py --rows 2000 --kills 10  # minutes
    python benchmarks/batch.py --rows 2000 --kills 0 --ray auto

Random weights of toy size, one step, 32x32 pixels, two references. A process of the batch (the one
that was started, or one of its workers) is killed after a random time, and the same command given
again. At the end all files are compared with their records. The rate is that of the stretch after
the last kill, without the start; beside it a loop of `imageprompt.generate` in one process, which
keeps its models, too.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from PIL import Image

from imageprompt import generate
from imageprompt.serve.batch import status, verify
from served import children
from timing import conditions
from tiny_stack import save_stack

STEPS, SIDE, COLOURS = 1, 32, ("red", "blue")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rows-per-shard", type=int, default=64)
    parser.add_argument("--longest", type=float, default=30, help="seconds before a kill")
    parser.add_argument("--loop", type=int, default=100, help="rows of the plain loop")
    parser.add_argument("--ray", metavar="ADDRESS")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    print(conditions())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_stack(folder / "stack")
        for colour in COLOURS:
            Image.new("RGB", (SIDE, SIDE), colour).save(folder / f"{colour}.png")
        rows = [row_of(number) for number in range(options.rows)]
        (folder / "jobs.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        disturbed(folder, options)
        finished(folder, options)
        loop(folder, rows[: options.loop + 1])


def row_of(number: int) -> dict[str, Any]:
    return {"prompt": f"row {number}", "reference": f"{COLOURS[number % len(COLOURS)]}.png"}


def start(folder: Path, options: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "imageprompt", "batch", str(folder / "jobs.jsonl")]
    command += ["--output", str(folder / "out"), "--base", str(folder / "stack")]
    command += ["--steps", str(STEPS), "--size", str(SIDE), "--workers", str(options.workers)]
    command += ["--rows-per-shard", str(options.rows_per_shard)]
    command += ["--ray", options.ray] if options.ray else []
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def disturbed(folder: Path, options: Any) -> None:
    """Kill processes of the batch at random moments."""
    numbers = random.Random(options.seed)
    process, killed = start(folder, options), {"batch": 0, "worker": 0}
    for _ in range(options.kills):
        time.sleep(numbers.uniform(0.5, options.longest))
        if process.poll() is not None:
            break
        workers = children(process.pid)
        if workers and numbers.random() < 0.5:
            os.kill(numbers.choice(workers), signal.SIGKILL)
            killed["worker"] += 1
            continue
        process.kill()
        process.wait()
        for worker in workers:  # they go on without it; end half of them, too
            if numbers.random() < 0.5:
                os.kill(worker, signal.SIGKILL)
        killed["batch"] += 1
        process = start(folder, options)
    before, began = rows_done(folder), time.monotonic()
    while rows_done(folder) == before and process.poll() is None:  # until the models are loaded
        time.sleep(0.1)
    loaded, at = rows_done(folder), time.monotonic()
    if process.wait():
        raise SystemExit(f"the batch ended with code {process.returncode}")
    rate = (rows_done(folder) - loaded) / (time.monotonic() - at)
    print(f"killed: {killed}; {before} rows before the last start, {at - began:.0f} s to begin")
    where = "Ray" if options.ray else f"{options.workers} processes"
    print(f"{where}: {rate:.2f} rows/s ({rows_done(folder) - loaded} rows without a kill)")


def rows_done(folder: Path) -> int:
    return status(folder / "out").done if (folder / "out" / "batch.json").exists() else 0


def finished(folder: Path, options: Any) -> None:
    found = verify(folder / "out")
    names = [path.name for path in (folder / "out" / "shards").rglob("*.png")]
    left = [path for path in (folder / "out" / "shards").iterdir() if path.name.startswith(".")]
    print(
        f"{options.rows} rows: {found.status.done} done, {found.status.failed} failed, "
        f"{found.pictures} pictures, {len(names) - len(set(names))} twice, "
        f"{len(found.problems)} problems, {len(left)} temporary folders left"
    )
    whole = found.status.done == found.pictures == len(set(names)) == options.rows
    if not whole or found.problems or len(names) != len(set(names)):
        raise SystemExit(1)


def loop(folder: Path, rows: list[dict[str, Any]]) -> None:
    """The same rows one by one; the first loads the models and does not count."""
    for number, row in enumerate(rows):
        if number == 1:
            began = time.monotonic()
        result = generate(
            row["prompt"],
            folder / row["reference"],
            base=folder / "stack",
            steps=STEPS,
            size=(SIDE, SIDE),
            seed=number,
            progress=False,
        )
        result.save(folder / "loop")
    print(f"a loop of generate: {(len(rows) - 1) / (time.monotonic() - began):.2f} rows/s")


if __name__ == "__main__":
    main()
