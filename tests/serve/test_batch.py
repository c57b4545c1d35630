"""batch: every row once, the same bytes whatever was killed and whoever made them."""

from __future__ import annotations

import csv
import json
import random
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import forked
from guides import DOCS, blocks, commands
from imageprompt import cli
from imageprompt.core.errors import OptionError
from imageprompt.loading.recipe import read_picture
from imageprompt.serve.batch import batch, status, verify
from imageprompt.serve.batch.shards import Batch, claimed

ROWS, SHARD = 11, 3
BROKEN, UNKNOWN, UNREAD = 4, 6, 10
PROGRAM = "import sys; from imageprompt.cli import main; sys.exit(main())"


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight rows that can be made, with two references in turn, and three that cannot."""
    folder = tmp_path_factory.mktemp("jobs")
    for name, colour in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (32, 32), colour).save(folder / f"{name}.png")
    (folder / "broken.png").write_text("no picture")
    rows: list[Any] = [
        {"prompt": f"row {index}", "reference": f"{'ab'[index % 2]}.png"} for index in range(ROWS)
    ]
    rows[1] |= {"num_images": 2, "seed": 7}
    rows[BROKEN]["reference"] = "broken.png"
    rows[UNKNOWN]["stepz"] = 3
    lines = [json.dumps(row) for row in rows[:UNREAD]] + ["no json"]
    (folder / "jobs.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "jobs.jsonl"


@pytest.fixture(scope="module")
def options(tiny_folder: Path) -> dict[str, Any]:
    defaults = {"base": str(tiny_folder), "steps": 1, "size": [32, 32]}
    return {"defaults": defaults, "shard_rows": SHARD, "batch_size": 2}


@pytest.fixture(scope="module")
def whole(jobs: Path, options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The batch made at once."""
    output = tmp_path_factory.mktemp("whole")
    assert batch(jobs, output, **options).failed == 3
    return output


def contents(output: Path) -> dict[str, bytes]:
    return {
        path.relative_to(output).as_posix(): path.read_bytes()
        for path in sorted((output / "shards").rglob("*"))
        if path.is_file()
    }


def records(output: Path) -> dict[int, Any]:
    begun = Batch.open(output)
    return {one["row"]: one for shard in range(begun.shard_count) for one in begun.records(shard)}


# ── what is made ────────────────────────────────────────────────────────────────────────────────


def test_every_row_has_its_pictures_or_its_error(whole: Path) -> None:
    found = records(whole)
    assert list(found) == [*range(ROWS)]
    assert "broken.png" in found[BROKEN]["error"]
    assert "Did you mean steps" in found[UNKNOWN]["error"]
    assert "not valid JSON" in found[UNREAD]["error"]
    assert [one["seed"] for one in found[1]["pictures"]] == [7, 8]
    seeds = [one["pictures"][0]["seed"] for row, one in found.items() if "error" not in one]
    assert len(set(seeds)) == len(seeds)  # each row without a seed has its own
    recipe, _ = read_picture(whole / "shards" / "000000" / found[0]["pictures"][0]["file"])
    assert recipe.prompt == "row 0"
    assert recipe.seed == found[0]["pictures"][0]["seed"]


def test_verify_and_status(whole: Path) -> None:
    found = verify(whole)
    assert found.problems == ()
    assert found.pictures == ROWS - 3 + 1
    counts = {"rows": ROWS, "done": ROWS, "failed": 3, "shards": 4, "done_shards": 4}
    assert status(whole).as_dict() == {**counts, "finished": True}


def test_verify_finds_what_changed(whole: Path, tmp_path: Path) -> None:
    for path, content in contents(whole).items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    for name in ("batch.json", "rows.jsonl"):
        (tmp_path / name).write_bytes((whole / name).read_bytes())
    first, second, third = sorted((tmp_path / "shards" / "000000").glob("*.png"))[:3]
    first.unlink()
    second.write_bytes(second.read_bytes()[:-1])
    third.with_name("more.png").write_bytes(b"")
    (tmp_path / "shards" / "000003" / "index.jsonl").write_text("")
    problems = "\n".join(verify(tmp_path).problems)
    assert f"{first.name} is missing" in problems
    assert f"{second.name} has changed" in problems
    assert "more.png has no record" in problems
    assert "000003/index.jsonl does not have each row once" in problems


# ── killed and shared ───────────────────────────────────────────────────────────────────────────


def test_killed_at_any_moment_it_ends_with_the_same_bytes(
    jobs: Path, options: dict[str, Any], whole: Path, tmp_path: Path
) -> None:
    defaults = options["defaults"]
    command = ["batch", str(jobs), "--output", str(tmp_path), "--rows-per-shard", str(SHARD)]
    command += ["--batch-size", "2", "--base", defaults["base"], "--steps", "1", "--size", "32"]
    rng = random.Random(0)
    for _ in range(4):
        program = forked.Program(PROGRAM, *command)
        while not (tmp_path / "batch.json").exists():
            time.sleep(0.01)
        time.sleep(rng.uniform(0.1, 0.8))
        program.process.kill()
        program.wait()
    assert forked.run(PROGRAM, *command).returncode == 1  # rows that could not be made
    assert contents(tmp_path) == contents(whole)
    assert not [path for path in (tmp_path / "shards").iterdir() if path.name.startswith(".")]
    assert verify(tmp_path).problems == ()


def test_parts_of_a_batch_make_the_same(
    jobs: Path, options: dict[str, Any], whole: Path, tmp_path: Path
) -> None:
    assert batch(jobs, tmp_path, shard=(2, 2), **options).done_shards == 2
    assert not status(tmp_path).finished
    with claimed(Batch.open(tmp_path), 0) as mine:
        assert mine == 0
        assert batch(None, tmp_path).done_shards == 3  # it leaves the shard that is being made
    assert batch(None, tmp_path).finished
    assert contents(tmp_path) == contents(whole)


def test_several_workers(
    jobs: Path,
    options: dict[str, Any],
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(subprocess, "Popen", forked.Popen)
    told: list[int] = []
    batch(jobs, tmp_path, workers=2, on_progress=lambda _, done, __: told.append(done), **options)
    assert contents(tmp_path) == contents(whole)
    assert told == sorted(told)
    assert told[-1] == ROWS


def test_workers_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    """However it ends: killed, it cannot tell them."""
    code = """if True:
        import sys, time
        from pathlib import Path
        from imageprompt.serve.batch import run
        run._WORKER = run._WORKER.replace("main())", "__import__('time').sleep(3600))")
        folder = Path(sys.argv[1])
        with run._lifeline() as lifeline, run._running(folder, 2, lifeline) as processes:
            told = " ".join(str(process.pid) for process in processes.values())
            (folder / "ids.tmp").write_text(told)
            (folder / "ids.tmp").rename(folder / "ids")
            time.sleep(3600)
    """
    program, end = forked.Program(code, str(tmp_path)), time.monotonic() + 120
    while not (tmp_path / "ids").exists():
        assert program.process.is_alive()
        time.sleep(0.02)
    workers = [Path("/proc") / word for word in (tmp_path / "ids").read_text().split()]
    assert all(path.exists() for path in workers)
    program.process.kill()
    program.wait()
    while any(path.exists() and not is_dead(path) for path in workers):
        assert time.monotonic() < end
        time.sleep(0.05)


def is_dead(process: Path) -> bool:
    """Has it ended, and only waits for somebody to ask how?"""
    try:
        return (process / "stat").read_text().rpartition(") ")[2].startswith("Z")
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_a_shard_that_kills_its_process_is_recorded_in_the_end(
    jobs: Path, options: dict[str, Any], whole: Path, tmp_path: Path
) -> None:
    batch(jobs, tmp_path, shard=(2, 4), **options)
    (tmp_path / "claims" / "000002.attempts").write_bytes(b"." * 10)
    assert batch(None, tmp_path).finished
    found = records(tmp_path)
    assert all("died 10 times" in found[row]["error"] for row in range(2 * SHARD, 3 * SHARD))
    assert found[0] == records(whole)[0]


def test_the_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_bundled: Path) -> None:
    """The rows and commands of docs/batch.md; one process here instead of two."""
    for name in ("photos/1.png", "photos/2.png", "style.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (32, 32), "green").save(tmp_path / name)
    (tmp_path / "jobs.jsonl").write_text(blocks(DOCS / "batch.md", "text")[0])
    monkeypatch.chdir(tmp_path)
    for command in commands(DOCS / "batch.md"):
        words = [word for word in command if word not in ("--workers", "2")]
        assert cli.main(words) == 0, command
    shown = blocks(DOCS / "batch.md", "text")[1].split()
    assert all((tmp_path / path).exists() for path in shown)


# ── job files ───────────────────────────────────────────────────────────────────────────────────


def test_csv_has_the_same_rows(
    jobs: Path, options: dict[str, Any], whole: Path, tmp_path: Path
) -> None:
    path = jobs.with_name("jobs.csv")
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["prompt", "reference", "num_images", "seed", "also"])
        writer.writeheader()
        for line in jobs.read_text().splitlines()[:3]:
            writer.writerow(json.loads(line))
        more = json.dumps([{"reference": "b.png", "scale": 0.5}])
        writer.writerow({"prompt": "1984", "reference": "a.png", "also": more})
    batch(path, tmp_path, **options)
    ours, theirs = contents(tmp_path), contents(whole)
    first = [name for name in theirs if name.startswith("shards/000000/")]
    assert all(ours[name] == theirs[name] for name in first)
    recipe, _ = read_picture(next((tmp_path / "shards" / "000001").glob("*.png")))
    assert (recipe.prompt, len(recipe.references)) == ("1984", 2)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("jobs.txt", "{}", "ends in none of"),
        ("empty.jsonl", "\n", "has no rows"),
        ("jobs.parquet", "no parquet", "arquet"),
    ],
)
def test_job_files_that_cannot_be_read(name: str, content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(OptionError, match=words):
        batch(tmp_path / name, tmp_path / "out")
    assert not (tmp_path / "out" / "batch.json").exists()


def test_rows_that_no_reader_accepts_are_records(tmp_path: Path, options: dict[str, Any]) -> None:
    long = json.dumps({"prompt": "x" * 2**20})
    rows = [long, "[1]", '{"also": 3}', '{"seed": 1e999}', '{"prompt": "\\ud800"}', '{"size": "x"}']
    (tmp_path / "jobs.jsonl").write_text("\n".join(rows))
    assert batch(tmp_path / "jobs.jsonl", tmp_path / "out", **options).failed >= 5
    assert "longer than" in records(tmp_path / "out")[0]["error"]


def test_another_batch_in_the_same_folder(
    jobs: Path, options: dict[str, Any], whole: Path, tmp_path: Path
) -> None:
    before = contents(whole)
    with pytest.raises(OptionError, match="another batch: seed differ"):
        batch(jobs, whole, **options, seed=1)
    fewer = tmp_path / "fewer.jsonl"
    fewer.write_text(jobs.read_text().splitlines()[0])
    with pytest.raises(OptionError, match="another batch: the rows differ"):
        batch(fewer, whole, **options)
    assert contents(whole) == before


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--shard", "3/2"], "not from 1/n to n/n"),
        (["--shard", "half"], "not I/N"),
        (["--workers", "0"], "workers"),
        (["--rows-per-shard", "-1"], "rows per shard"),
        (["--status"], "holds no batch"),
        (["--stepz", "3"], "Did you mean --steps"),
    ],
)
def test_bad_flags(
    flags: list[str], words: str, jobs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = cli.main(["batch", str(jobs), "--output", str(tmp_path / "out"), *flags])
    except SystemExit as end:
        code = end.code
    assert code == 2
    assert words in capsys.readouterr().err
