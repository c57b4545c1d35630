"""kill -9 at random moments, saves included: only the steps since the last save are lost."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

import forked
from imageprompt.training.loop import checkpoints
from toy_training import Toy, import_all, metrics, same, trainer

KILLS = 30
STEPS = 16
OPTIONS: dict[str, Any] = {"steps": STEPS, "checkpoint_every": 2, "log_every": 3, "batch_size": 2}


def train(folder: str) -> None:
    """Start a run, or resume it."""
    trainer(Path(folder), samples=Toy(pause=0.002), **OPTIONS).run()


def time_run(folder: Path) -> float:
    """Seconds of a run that is not killed."""
    import_all()
    started = time.monotonic()
    process = forked.start(train, str(folder))
    process.join()
    assert process.exitcode == 0
    return time.monotonic() - started


def kill_after(process: BaseProcess, seconds: float) -> bool:
    """kill -9 after `seconds`; False if the process had already finished."""
    process.join(seconds)
    if process.exitcode is not None:
        assert process.exitcode == 0
        return False
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    return True


def survive(folder: Path, kills: int, rng: random.Random) -> tuple[int, int]:
    """Kill runs so many times; returns how many had finished before, and the kills during a save.

    After each kill, every checkpoint is intact or known to be unfinished. When a run finishes,
    another one starts in its own folder.
    """
    hits, inside_saves, number = 0, 0, 0
    longest = time_run(folder / "warm")
    while hits < kills:
        here = folder / str(number)
        process = forked.start(train, str(here))
        killed = kill_after(process, rng.uniform(0, 0.7 * longest))
        root = here / "checkpoints"
        unfinished = list(root.glob(".step-*")) if root.exists() else []
        hits, inside_saves = hits + killed, inside_saves + bool(unfinished)
        found, damaged = checkpoints.newest(root)
        assert damaged == []
        if not killed:
            assert found is not None
            assert found.step == STEPS
            number += 1
            longest *= 0.9  # other work on the machine may have ended
    return number, inside_saves


def check_all(folder: Path) -> None:
    """Every run, killed or not, ends like the one that was never killed."""
    uninterrupted = trainer(folder / "warm", **OPTIONS)
    assert uninterrupted.step == STEPS
    for here in sorted(path for path in folder.iterdir() if path.name.isdecimal()):
        run = trainer(here, **OPTIONS)
        run.run()
        assert same(run, uninterrupted), here
        assert metrics(here) == metrics(folder / "warm")


@pytest.mark.slow
def test_kill_9_at_random_moments(tmp_path: Path, whole: bool) -> None:
    survive(tmp_path, KILLS if whole else KILLS // 5, random.Random(4))
    check_all(tmp_path)


if __name__ == "__main__":
    # PYTHONPATH=tests/support python tests/training/test_train_crash.py FOLDER KILLS [SEED]
    where, count = Path(sys.argv[1]), int(sys.argv[2])
    seed = int(sys.argv[3]) if len(sys.argv) > 3 else 0
    finished, inside = survive(where, count, random.Random(seed))
    print(f"{count} kills, {inside} of them during a save; {finished} runs had finished before")
    check_all(where)
    print("every run ended as the one that was never killed, to the bit")
