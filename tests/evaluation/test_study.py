"""`imageprompt evaluate`: the plan, the lines, a study that is killed, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import forked
import imageprompt as ip
from imageprompt import cli
from imageprompt.core import bundled
from imageprompt.core.errors import ImagePromptError, OptionError
from imageprompt.evaluation.study import references, run
from imageprompt.evaluation.study.config import StudyConfig, folder_names
from imageprompt.evaluation.study.plan import Grid, Plan, ceilings
from imageprompt.evaluation.study.references import StudyReference
from imageprompt.evaluation.study.results import read_lines, read_results
from imageprompt.evaluation.study.run import Study, evaluate
from imageprompt.loading.recipe import read_picture

SMALL: dict[str, Any] = {
    "adapters": ["base", "plus"],
    "scales": [0.5, 1.0],
    "prompts": ["a red star", ""],
    "seeds": 2,
    "steps": 1,
    "batch_size": 2,
    "metrics": ["lab", "clip-i"],
}


LINE: dict[str, Any] = {
    "prompt": "a star",
    "reference": "a.png",
    "seed": 1,
    "scale": 0.5,
    "adapter": "plus",
    "base": "bundled",
    "picture": "pictures/1.png",
    "metrics": {},
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures of a cat."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name in ("cat/1", "cat/2"):
        path = folder / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (20, 24, 3), np.uint8)).save(path)
    return folder


@pytest.fixture(scope="module")
def small(tiny_folder: Path, photos: Path) -> dict[str, Any]:
    return SMALL | {"base": str(tiny_folder), "references": str(photos)}


@pytest.fixture(autouse=True, scope="module")
def no_report() -> Iterator[None]:
    """The page is tested elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "_write_report", lambda folder: folder / "report.html")
        yield


@pytest.fixture(scope="module")
def finished(small: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study that was never stopped."""
    folder = tmp_path_factory.mktemp("study") / "whole"
    evaluate(small | {"output": str(folder)}, progress=False)
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def lines_of(folder: Path) -> list[bytes]:
    return (folder / "results.jsonl").read_bytes().splitlines()


def message(config: dict[str, Any], tmp_path: Path) -> str:
    """The error of a study that cannot run; nothing was made."""
    with pytest.raises(ImagePromptError) as caught:
        evaluate({"output": str(tmp_path / "out")} | config, progress=False)
    assert not (tmp_path / "out" / "pictures").exists()
    return str(caught.value)


def test_a_study_writes_nothing_through_a_link(small: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "pictures").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OptionError, match="leads out of the study"):
        evaluate(small | {"output": str(tmp_path / "study")}, progress=False)
    assert not list((tmp_path / "elsewhere").iterdir())


# ── the plan ────────────────────────────────────────────────────────────────────────────────────


def plan_of(count: int, subjects: list[str] | None = None, **keys: Any) -> Plan:
    given = [
        StudyReference(ip_picture(f"{i}.png"), subjects[i] if subjects else "")
        for i in range(count)
    ]
    config = StudyConfig.load({"output": "out", "prompts": ["a", "b"], **keys})
    return Plan.of(config, given, Grid(count, ["a", "b"]))


def ip_picture(name: str) -> Any:
    from imageprompt.evaluation.scoring import Picture

    return Picture(Path(name), name)


def test_rows_have_one_order() -> None:
    plan = plan_of(2, seeds=2, scales=[0.5, 1], adapters=["base", "plus"])
    rows = [row for chunk in plan.chunks() for row in chunk]
    assert len(rows) == len(plan) == 5 * 2 * 2 * 2 + 2
    assert [row.row for row in rows] == ["control"] * 8 + ["adapter"] * 32 + ["ceiling"] * 2
    first = [(r.adapter, r.scale, r.reference, r.prompt, r.seed) for r in rows[8:13]]
    assert first == [
        (0, 0.5, 0, "a", 1),
        (0, 0.5, 0, "a", 2),
        (0, 0.5, 0, "b", 1),
        (0, 0.5, 0, "b", 2),
        (0, 0.5, 1, "a", 1),
    ]
    assert plan.pictures == len({r.picture for r in rows if r.row != "ceiling"}) == 4 + 32
    assert sum(row.new for row in rows if row.row == "control") == 4


def test_a_chunk_has_one_setting_and_depends_on_the_plan_alone() -> None:
    plan = plan_of(40, adapters=["base"], scales=[1], batch_size=8)
    sizes = [(chunk[0].row, len(chunk)) for chunk in plan.chunks()]
    assert sizes[:3] == [("control", 32), ("control", 32), ("control", 16)]
    assert sizes[3:6] == [("adapter", 32), ("adapter", 32), ("adapter", 16)]
    assert sizes[6:] == [("ceiling", 32), ("ceiling", 8)]
    assert all(len({row.row for row in chunk}) == 1 for chunk in plan.chunks())
    assert plan_of(3, batch_size=100).chunk == 100


def test_a_plan_of_millions_takes_no_memory() -> None:
    plan = plan_of(20_000, adapters=["base"], scales=[0.5, 1], seeds=10, ceiling=False)
    assert len(plan) == 1_200_000
    assert len(next(plan.chunks())) == 32
    with pytest.raises(OptionError, match="more than 5,000,000"):
        plan_of(20_000, seeds=100)


def test_the_ceiling_is_another_picture_of_the_subject() -> None:
    subjects = ["cat", "dog", "cat", "cat"]
    given = [StudyReference(ip_picture(f"{i}"), name) for i, name in enumerate(subjects)]
    assert ceilings(given) == {0: 2, 2: 3, 3: 0}
    assert ceilings(given[:2]) == {0: 0, 1: 1}
    assert not plan_of(4, subjects).decoded
    assert plan_of(2).decoded


def test_names_of_folders_never_collide() -> None:
    assert folder_names(["plus", "Plus", "a/b:c", "..", "control"]) == [
        "plus",
        "Plus-2",
        "a-b-c",
        "adapter",
        "control-2",
    ]


# ── a study ─────────────────────────────────────────────────────────────────────────────────────


def test_lines_of_a_study(finished: Path, small: dict[str, Any], photos: Path) -> None:
    lines = [*read_lines(finished)]
    assert len(lines) == 2 * 2 * 2 * 5 + 2
    control, adapter, ceiling = lines[0], lines[8], lines[-1]
    keys = ["row", "prompt", "reference", "seed", "scale", "adapter", "base", "picture"]
    assert [*adapter] == [*keys, "metrics", "hashes", "extractors"]
    assert control["adapter"] is None
    assert control["scale"] == 0
    assert (adapter["adapter"], adapter["scale"], adapter["seed"]) == ("base", 0.5, 1)
    assert adapter["reference"] == (photos / "cat/1.png").as_posix()
    assert {*adapter["hashes"]} == {"adapter", "base", "reference", "picture"}
    assert (ceiling["prompt"], ceiling["seed"], ceiling["scale"]) == (None, None, None)
    assert [*adapter["metrics"]] == ["lab", "clip-i"]
    assert "time" not in json.dumps(lines)


def test_pictures_are_those_of_generate(finished: Path) -> None:
    """Their recipes make them again; the control is the base alone, whatever the reference."""
    results = read_results(finished)
    row = int(np.flatnonzero(results.row.equal("adapter"))[5])
    recipe, _ = read_picture(results.picture_path(row))
    assert recipe.prompt == results.prompt[row]
    assert recipe.seed == results.seed[row]
    assert recipe.scale == results.scale[row]
    assert recipe.references[0].pictures[0].name == str(results.reference_path(row))
    control = results.where(row="control", prompt="", seed=2)
    assert len(control) == 2
    assert len(control.picture.distinct()) == 1
    assert not read_picture(control.picture_path(0))[0].references


def test_results_in_columns(finished: Path) -> None:
    results = read_results(finished)
    assert results.complete
    assert len(results.where(adapter="plus", scale=0.5)) == 8
    assert len(results.where(adapter=None)) == 10
    assert len(results.where(row="ceiling", prompt=None, seed=None, scale=None)) == 2
    assert results.adapter.distinct() == ["base", "plus"]
    assert np.isfinite(results.metrics["lab"]).all()
    assert results.clusters()[0] == "reference"  # two prompts are too few
    assert results.take(results.scale == 1.0).picture_path(0).exists()


def test_the_study_file(finished: Path) -> None:
    study = read_results(finished).study
    assert [(one["row"], one["adapter"], one["scale"]) for one in study["summary"]] == [
        ("control", None, 0.0),
        ("adapter", "base", 0.5),
        ("adapter", "base", 1.0),
        ("adapter", "plus", 0.5),
        ("adapter", "plus", 1.0),
        ("ceiling", None, None),
    ]
    assert study["ceiling"] == "another picture of the same subject"
    assert {*study["environment"]} == {"device", "dtype", "versions"}
    assert {*study["extractors"]["clip"]} == {"name", "fingerprint", "preprocessing"}
    assert study["config"]["metrics"] == ["lab", "clip-i"]


def test_finished_studies_are_not_made_again(
    finished: Path, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.stat().st_mtime_ns for path in (finished / "pictures").rglob("*.png")}
    monkeypatch.setattr(Study, "_generate", lambda *_: pytest.fail("a picture is made again"))
    content = (finished / "results.jsonl").read_bytes()
    evaluate(small | {"output": str(finished)}, progress=False)
    assert (finished / "results.jsonl").read_bytes() == content
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_chunk_is_made_whole(
    copied: Path, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One picture of a chunk without lines is gone: all of the chunk are made again, in batches of
    the same pictures."""
    made: list[int] = []
    generate = Study._generate
    monkeypatch.setattr(
        Study,
        "_generate",
        lambda self, requests, *more: made.append(len(requests)) or generate(self, requests, *more),
    )
    path = copied / "results.jsonl"
    before = path.read_bytes()
    path.write_bytes(b"".join(before.splitlines(keepends=True)[:16]))
    rows = [json.loads(line) for line in before.splitlines()]
    (copied / rows[20]["picture"]).unlink()
    evaluate(small | {"output": str(copied)}, progress=False)
    assert made == [8]
    assert path.read_bytes() == before


# ── kill -9 ─────────────────────────────────────────────────────────────────────────────────────


def killed_after_pictures(config: dict[str, Any], count: int) -> None:
    """A study whose process is killed when it has written so many pictures."""
    from imageprompt.loading import recipe

    write, left = recipe.write_picture, [count]

    def write_picture(*arguments: Any) -> None:
        write(*arguments)
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    recipe.write_picture = write_picture  # in a process of its own
    evaluate(config, progress=False)


def killed_in_a_line(config: dict[str, Any], number: int) -> None:
    """A study whose process is killed while it writes the lines of a chunk."""
    left = [number]

    def append_line(path: Path, text: str) -> None:
        left[0] -= 1
        with path.open("ab") as stream:
            if left[0] == 0:
                stream.write(f"{text}\n".encode()[: len(text) * 2 // 3])
                stream.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            stream.write(f"{text}\n".encode())

    run.append_line = append_line  # in a process of its own
    evaluate(config, progress=False)


def test_a_killed_study_goes_on_and_nothing_differs(
    small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imageprompt.evaluation.study.plan.CHUNK", 4)
    few = small | {"adapters": ["plus"], "scales": [1.0]}
    config, whole = few | {"output": str(tmp_path / "study")}, tmp_path / "whole"
    evaluate(few | {"output": str(whole)}, progress=False)
    for kill, moment in ((killed_after_pictures, 3), (killed_in_a_line, 2), (killed_in_a_line, 1)):
        process = forked.start(kill, config, moment)
        process.join(300)
        assert process.exitcode == -signal.SIGKILL
    count = len(lines_of(tmp_path / "study"))
    assert 0 < count < len(lines_of(whole))
    evaluate(config, progress=False)
    assert lines_of(tmp_path / "study") == lines_of(whole)
    for path in (whole / "pictures").rglob("*.png"):
        made = tmp_path / "study" / path.relative_to(whole)
        assert made.read_bytes() == path.read_bytes()


# ── a folder that has another study, or a damaged one ───────────────────────────────────────────


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"scales": [0.5, 0.9]}, "config.scales[1]: 1.0 -> 0.9"),
        ({"seeds": 3}, "config.seeds: 2 -> 3"),
        ({"metrics": ["lab"]}, "metrics"),
        ({"adapters": ["base"]}, "adapters"),
    ],
)
def test_another_study_in_the_folder(
    change: dict[str, Any], told: str, copied: Path, small: dict[str, Any]
) -> None:
    with pytest.raises(OptionError, match="has another study") as caught:
        evaluate(small | {"output": str(copied)} | change, progress=False)
    assert told in str(caught.value)


def test_lines_that_are_not_of_the_study(copied: Path, small: dict[str, Any]) -> None:
    path = copied / "results.jsonl"
    lines = path.read_text().splitlines()
    again = small | {"output": str(copied)}
    path.write_text("\n".join([*lines[:9], lines[9].replace('"seed":2', '"seed":7')]) + "\n")
    path.write_text(path.read_text() + "\n".join(lines[10:]) + "\n")
    with pytest.raises(OptionError, match=r"line 10: not of this study: seed"):
        evaluate(again, progress=False)
    path.write_text("\n".join([*lines[:3], lines[3][:40], *lines[4:]]) + "\n")
    with pytest.raises(OptionError, match=r"line 4: not JSON"):
        read_results(copied)
    path.write_text("\n".join(lines) + "\n")
    (copied / json.loads(lines[20])["picture"]).unlink()
    with pytest.raises(OptionError, match=r"line 21: its picture .* is missing"):
        evaluate(again, progress=False)


def test_a_line_that_is_being_written_is_left_out(copied: Path) -> None:
    with (copied / "results.jsonl").open("a") as stream:
        stream.write('{"row":"adap')
    assert len(read_results(copied)) == 42


def test_unknown_keys_are_kept(copied: Path) -> None:
    path = copied / "results.jsonl"
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps(json.loads(first) | {"mood": "good"}), *rest]) + "\n")
    results = read_results(copied)
    assert results.extra == {0: {"mood": "good"}}
    assert results.take([5, 0]).extra == {1: {"mood": "good"}}


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("[]", "not a JSON object"),
        ('{"row":"adapter"}', "without prompt, reference"),
        ("{}", "without"),
        ("NaN", "not JSON"),
        ({"picture": None}, "picture null is not text"),
        ({"metrics": [1]}, "metrics is not an object"),
        ({"metrics": {"lab": "low"}}, '"low" is not a number'),
        ({"seed": -1}, "seed -1 is not a whole number"),
        ({"scale": True}, "true is not a number"),
        ({"prompt": 5}, "5 is not text"),
        ({"row": "middle"}, 'row "middle" is not one of'),
        ({"hashes": {"base": 1}}, "1 is not text"),
    ],
)
def test_broken_lines(line: str | dict[str, Any], told: str, tmp_path: Path) -> None:
    if isinstance(line, dict):
        line = json.dumps(LINE | line)
    (tmp_path / "results.jsonl").write_text(f"{line}\n")
    with pytest.raises(OptionError, match="line 1") as caught:
        read_results(tmp_path)
    assert told in str(caught.value)


@pytest.mark.parametrize("picture", ["../x.png", "/etc/x.png", "a/../../x.png", "C:x", "..\\\\x"])
def test_a_study_names_only_pictures_of_its_own(picture: str, copied: Path) -> None:
    path = copied / "results.jsonl"
    first, *rest = path.read_text().splitlines()
    line = json.dumps(json.loads(first) | {"picture": picture})
    path.write_text("\n".join([line, *rest]) + "\n")
    with pytest.raises(OptionError, match=r"line 1: picture .* leads out of the study"):
        read_results(copied)


# ── what a study refuses, before the first picture ──────────────────────────────────────────────


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"metrics": ["clip_i"]}, "Did you mean 'clip-i'?"),
        ({"metrics": ["csd"]}, "csd"),
        ({"metrics": ["precision-recall"]}, "metric precision-recall of 2 references"),
        ({"scales": [2.5]}, "from 0 (the base alone) to 2"),
        ({"scales": [0]}, "is the control"),
        ({"scales": []}, "must not be empty"),
        ({"scales": [1, 1]}, "must differ"),
        ({"seeds": 0}, "between 1 and 1000"),
        ({"adapters": ["base", {"adapter": "plus", "name": "base"}]}, "two adapters called 'base'"),
        ({"adapters": ["nowhere.safetensors"]}, "nowhere.safetensors"),
        ({"adapters": [{"adaptr": "base"}]}, "Did you mean 'adapters[0].adapter'?"),
        ({"references": "nowhere"}, "no such file or folder"),
        ({"prompts": []}, "no text"),
        ({"extractors": {"clup": "x"}}, "Did you mean 'clip'?"),
        ({"protocol": "dreambench"}, "Give both"),
        ({"size": 13}, "13"),
    ],
)
def test_refused(change: dict[str, Any], told: str, small: dict[str, Any], tmp_path: Path) -> None:
    assert told in message(small | change, tmp_path)


def test_files_that_are_refused(small: dict[str, Any], photos: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(photos, broken)
    (broken / "cat" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    assert "3.png" in message(small | {"references": str(broken)}, tmp_path)
    (tmp_path / "empty").mkdir()
    assert "no pictures" in message(small | {"references": str(tmp_path / "empty")}, tmp_path)
    (tmp_path / "prompts.txt").write_text("\n  \n")
    assert "no text" in message(small | {"prompts": str(tmp_path / "prompts.txt")}, tmp_path)
    assert "drawn ones suit" in message(small | {"references": None}, tmp_path)


def test_an_adapter_of_another_base(small: dict[str, Any], tmp_path: Path) -> None:
    adapters = ["base", str(bundled.adapter("plus"))]
    told = message(small | {"adapters": adapters}, tmp_path)
    assert told.startswith("adapter plus: ")


def test_a_folder_of_too_many_files(
    small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = tmp_path / "many"
    many.mkdir()
    for index in range(30):
        (many / f"{index}.txt").touch()
    monkeypatch.setattr(references, "MAX_ENTRIES", 20)
    assert "or 20 files" in message(small | {"references": str(many)}, tmp_path)


def test_equal_adapters_are_told(small: dict[str, Any], tiny_folder: Path, tmp_path: Path) -> None:
    told: list[str] = []
    config = small | {
        "output": str(tmp_path / "out"),
        "adapters": ["plus", {"adapter": "plus", "name": "again"}],
        "scales": [1],
        "metrics": ["lab"],
        "prompts": [""],
        "seeds": 1,
    }
    result = evaluate(config, log=told.append, progress=False)
    assert told[0] == "again and plus have the same weights"
    means = {one["adapter"]: one["metrics"]["lab"]["value"] for one in result.summary}
    assert means["plus"] == pytest.approx(means["again"])


def test_a_metric_that_fails_is_named_and_counted(small: dict[str, Any], tmp_path: Path) -> None:
    """The pictures are 16x16, the references 24x20."""
    config = small | {"output": str(tmp_path / "out"), "metrics": ["psnr", "lab"], "seeds": 1}
    result = evaluate(config | {"adapters": ["base"], "scales": [1]}, progress=False)
    line = next(read_lines(result.folder))
    assert line["metrics"]["psnr"] is None
    assert "24x20" in line["failed"]["psnr"]
    setting = result.summary[1]["metrics"]["psnr"]
    assert (setting["value"], setting["n"]) == (None, 0)
    assert setting["missing"] == 4


# ── the command ─────────────────────────────────────────────────────────────────────────────────


def test_the_command(
    small: dict[str, Any], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.txt").write_text("a star\n\na red square\n")
    out = tmp_path / "out"
    flags = f"--references {photos} --base {small['base']} --adapter base --adapter p=plus"
    flags += f" --prompts {tmp_path / 'prompts.txt'} --scales 0.5 --seeds 1 --steps 1"
    flags += f" --metric lab --no-control --no-ceiling --output {out}"
    assert cli.main(["evaluate", *flags.split(), "--dry-run", "--json"]) == 0
    estimate = json.loads(capsys.readouterr().out)
    assert (estimate["rows"], estimate["pictures"], estimate["done"]) == (8, 8, 0)
    assert not (out / "results.jsonl").exists()
    assert cli.main(["evaluate", *flags.split(), "--json"]) == 0
    shown = capsys.readouterr()
    printed = json.loads(shown.out)
    assert shown.err == ""
    assert [one["adapter"] for one in printed["summary"]] == ["base", "p"]
    assert cli.main(["evaluate", *flags.split()]) == 0
    shown = capsys.readouterr()
    assert "8 pictures: 2 adapters x 1 scale x 4 pairs of reference and prompt" in shown.err


def test_a_study_file(small: dict[str, Any], photos: Path, tmp_path: Path) -> None:
    """References below it are named relative to it; flags and --set change its keys."""
    shutil.copytree(photos, tmp_path / "here" / "refs")
    keys = small | {"references": str(tmp_path / "here" / "refs"), "output": str(tmp_path / "o")}
    (tmp_path / "here" / "study.yaml").write_text(json.dumps(keys))
    flags = ["--adapter", "base", "--scales", "1", "--prompt", "", "--json"]
    command = ["evaluate", str(tmp_path / "here" / "study.yaml"), *flags, "--set", "seeds=1"]
    assert cli.main(command) == 0
    results = read_results(tmp_path / "o")
    assert len(results) == 2 + 2 + 2
    assert results.reference[0] == "refs/cat/1.png"
    path = results.reference_path(0)
    assert path is not None
    assert path.exists()


def test_the_drawn_study(tiny_bundled: Path, tmp_path: Path) -> None:
    """With nothing but an output: drawn references, a few texts, the bundled adapters."""
    config = {"output": str(tmp_path / "out"), "count": 1, "steps": 1, "size": 16}
    study = Study(StudyConfig.load(config))
    assert study.metrics == ["attributes", "words", "clip-i", "lab", "copying"]
    result = evaluate(config | {"metrics": ["words"], "adapters": ["plus"]}, progress=False)
    results = result.results()
    assert results.reference.distinct() == ["references/0000.png"]
    assert len(results.prompt.distinct()) == 5
    assert result.study["ceiling"] == "the reference after the base's autoencoder"
    assert np.isnan(results.where(row="ceiling").metrics["words"]).all()
    assert not results.where(row="ceiling").failed


def test_public_names() -> None:
    assert ip.evaluate is evaluate
    assert ip.read_results is read_results
