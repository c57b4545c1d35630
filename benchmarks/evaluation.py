"""Studies: killed at random moments, scoring beside generating, and memory beside their length.

    python benchmarks/evaluation.py kills --json kills.json
    python benchmarks/evaluation.py scoring --pictures 1000
    python benchmarks/evaluation.py memory

`kills` runs a study of the bundled stack in processes that are killed (SIGKILL) ten times, at
moments spread over its length, and compares all lines and pictures with those of a whole run.
`scoring` generates and scores one study, and prints the CPU seconds of both. `memory` reads the
results of 10,000 and 100,000 rows, and verifies them as a resumed study does.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

STUDY: dict[str, Any] = {"steps": 2, "batch_size": 4, "seeds": 2, "scales": [1.0]}
KILLS = 10
RESULTS = "results.jsonl"


# ── kills ───────────────────────────────────────────────────────────────────────────────────────


def kills(options: argparse.Namespace) -> dict[str, Any]:
    """Kill one study again and again, each time when it has some more pictures."""
    import diffusers  # noqa: F401 - imported once, as the processes are forked
    import torch
    import transformers  # noqa: F401

    from imageprompt.evaluation.study.references import drawn_references

    torch.set_num_threads(1)
    top = Path(options.folder)
    drawn_references(top, 3)  # shared: recipes name their paths
    whole, killed = top / "whole", top / "killed"
    start(whole).join()
    total = count(whole)
    at: list[dict[str, int]] = []
    for number in range(KILLS):
        process = start(killed)
        moment = round((number + 1) * total / (KILLS + 1))
        while process.is_alive() and count(killed) < moment:
            time.sleep(0.005)
        time.sleep(0.07 * number)  # not always just after a picture
        process.kill()
        process.join()
        at.append({"pictures": count(killed), "lines": lines(killed), "exit": process.exitcode})
    start(killed).join()
    pictures = sorted(path.relative_to(whole) for path in (whole / "pictures").rglob("*.png"))
    same = sum((whole / one).read_bytes() == (killed / one).read_bytes() for one in pictures)
    return {
        "lines": lines(whole),
        "lines_equal": (whole / RESULTS).read_bytes() == (killed / RESULTS).read_bytes(),
        "pictures": len(pictures),
        "pictures_equal": same,
        "extra_pictures": count(killed) - len(pictures),
        "killed_at": at,
    }


def start(folder: Path) -> Any:
    """A process that runs the study."""
    process = get_context("fork").Process(target=_study, args=(folder,))
    process.start()
    return process


def _study(folder: Path) -> None:
    from imageprompt.evaluation.study.config import StudyConfig
    from imageprompt.evaluation.study.run import Study

    keys = STUDY | {"output": str(folder), "references": str(folder.parent / "references")}
    Study(StudyConfig.load(keys)).run(progress=False, report=False)


def count(folder: Path) -> int:
    return sum(1 for _ in (folder / "pictures").rglob("[0-9]*.png"))


def lines(folder: Path) -> int:
    path = folder / RESULTS
    return path.read_bytes().count(b"\n") if path.exists() else 0


# ── scoring ─────────────────────────────────────────────────────────────────────────────────────


def scoring(options: argparse.Namespace) -> dict[str, Any]:
    """CPU seconds of generating and of scoring, a picture."""
    from imageprompt.evaluation.study import run
    from imageprompt.evaluation.study.config import StudyConfig
    from imageprompt.evaluation.study.measure import LineMaker
    from timing import cpu_seconds

    seeds = max(1, options.pictures // (4 * 5))
    config = {"output": str(Path(options.folder) / "study"), "adapters": ["plus"]}
    config |= {"scales": [1.0], "seeds": seeds, "control": False, "ceiling": False}
    if options.steps:
        config["steps"] = options.steps
    study = run.Study(StudyConfig.load(config))
    spent = {"generating": 0.0, "scoring": 0.0, "report": 0.0}
    timed(run.Study, "_make_pictures", spent, "generating")
    timed(LineMaker, "lines", spent, "scoring")
    timed(run, "_write_report", spent, "report")
    whole = cpu_seconds(lambda: study.run(progress=False))
    return {
        "pictures": study.plan.pictures,
        "metrics": study.metrics,
        **{name: round(value, 2) for name, value in spent.items()},
        "whole": round(whole, 2),
        "scoring_share": round(spent["scoring"] / (spent["scoring"] + spent["generating"]), 4),
        "report_bytes": (study.folder / "report.html").stat().st_size,
    }


def timed(owner: Any, name: str, spent: dict[str, float], key: str) -> None:
    function: Callable[..., Any] = getattr(owner, name)

    def measured(*arguments: Any, **more: Any) -> Any:
        start = time.process_time()
        try:
            return function(*arguments, **more)
        finally:
            spent[key] += time.process_time() - start

    setattr(owner, name, measured)


# ── memory ──────────────────────────────────────────────────────────────────────────────────────


def memory(options: argparse.Namespace) -> dict[str, Any]:
    """MB at most and CPU seconds of processes that verify or read so many rows."""
    found = {}
    for count_ in (10, 10_000, 100_000):
        folder = Path(options.folder) / f"{count_}"
        write_rows(folder, count_)
        for what in ("verify", "read"):
            child = [sys.executable, __file__, what, "--rows", str(count_), "--folder", str(folder)]
            done = subprocess.run(child, capture_output=True, text=True, check=True)
            found[f"{what}, {count_:,} rows"] = json.loads(done.stdout)
    return found


def plan_of(rows: int) -> Any:
    """A plan of so many rows: one adapter at one scale, ten references and ten prompts."""
    from imageprompt.evaluation.scoring import Picture
    from imageprompt.evaluation.study.config import StudyConfig
    from imageprompt.evaluation.study.plan import Grid, Plan
    from imageprompt.evaluation.study.references import StudyReference

    side = 10 if rows >= 100 else 1
    keys = {"output": "out", "adapters": ["base"], "scales": [1.0], "seeds": rows // side}
    prompts = [f"prompt {i}" for i in range(10)]
    if side == 10:
        keys["seeds"] = min(1000, rows // 100)
    else:
        keys["seeds"], prompts = 1, prompts[:rows]
    config = StudyConfig.load(keys | {"control": False, "ceiling": False})
    given = [StudyReference(Picture(Path(f"{i}.png"), f"{i}.png"), "") for i in range(side)]
    return Plan.of(config, given, Grid(side, prompts))


def expected(row: Any) -> dict[str, Any]:
    """What a line begins with."""
    names = ("row", "prompt", "seed", "scale", "picture")
    plain = {name: getattr(row, name) for name in names}
    return plain | {"reference": f"{row.reference}.png", "adapter": "base", "base": "bundled"}


def write_rows(folder: Path, rows: int) -> None:
    """The results of a plan, with invented figures."""
    folder.mkdir(parents=True)
    more = {"metrics": {"clip-i": 0.7, "dino": 0.5, "words": 1.0, "lab": 20.25, "copying": 0.1}}
    with (folder / RESULTS).open("w") as stream:
        for number, row in enumerate(row for chunk in plan_of(rows).chunks() for row in chunk):
            hashes = {"adapter": "a" * 64, "base": "b" * 16, "picture": f"{number:032x}"}
            line = expected(row) | more | {"hashes": hashes, "extractors": {"clip": "c" * 16}}
            stream.write(json.dumps(line, separators=(",", ":")) + "\n")


def verify(options: argparse.Namespace) -> dict[str, Any]:
    """What a resumed study does first; its pictures count as there."""
    from imageprompt.evaluation.study.resume import finished_rows

    plan = plan_of(options.rows)
    with mock.patch.object(Path, "exists", new=_there):
        assert finished_rows(Path(options.folder), plan, expected) == len(plan) == options.rows
    return spent()


def _there(path: Path) -> bool:
    return True


def read(options: argparse.Namespace) -> dict[str, Any]:
    """What a report does first."""
    from imageprompt.evaluation.study.results import read_results

    assert len(read_results(options.folder)) == options.rows
    return spent()


def spent() -> dict[str, Any]:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {"MB": round(used.ru_maxrss / 1024, 1), "CPU seconds": round(used.ru_utime, 2)}


MEASURES = {"kills": kills, "scoring": scoring, "memory": memory, "verify": verify, "read": read}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=MEASURES)
    parser.add_argument("--pictures", type=int, default=1000, help="of `scoring`")
    parser.add_argument("--steps", type=int, help="denoising steps of `scoring`")
    parser.add_argument("--rows", type=int, help="of `verify` and `read`, which `memory` calls")
    parser.add_argument("--folder")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.rows is not None:
        print(json.dumps(MEASURES[options.what](options)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        options.folder = options.folder or temporary
        found = MEASURES[options.what](options)
    from timing import conditions  # imports torch, which `memory` must not

    print(conditions())
    print(json.dumps(found, indent=1))
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
