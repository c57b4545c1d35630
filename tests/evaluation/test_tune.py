"""`imageprompt tune`: the rule, the search, and the file that `generate` reads."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import tune as benchmark
from imageprompt import cli, loading
from imageprompt.control.controls import Controls
from imageprompt.core import bundled
from imageprompt.core.errors import OptionError
from imageprompt.evaluation.scale_search import SHARE, Rule, ScaleSearch, monotone, scales_up_to
from imageprompt.evaluation.study.results import read_results
from imageprompt.evaluation.tune import TuneResult, tune
from imageprompt.loading.recipe import read_picture
from studies import sweep, write_study

SCALES = scales_up_to(1.0)
STYLE = "style transfer"
QUICK = {"count": 1, "prompts": ["a star", "a red shape"], "adapters": ["plus"]}

# ── the rule and the search ─────────────────────────────────────────────────────────────────────


def test_rules() -> None:
    assert Rule.of(">= 0.9") == Rule.of("0.9") == Rule.of(" ≥ .9 ") == Rule(0.9)
    assert Rule.of(">= 90%") == Rule(0.9, relative=True)
    assert Rule.of(">= 90%").limit(0.3) == pytest.approx(0.27)
    assert (str(Rule()), str(Rule.of("90 %"))) == ("the knee", "text following at least 90 %")
    for wrong in ("", "< 0.9", "high", "0.9.1"):
        with pytest.raises(OptionError, match="not a lower limit"):
            Rule.of(wrong)


def test_the_most_likeness_where_enough_of_the_text_is_left() -> None:
    score = Rule(0.8).score([0.2, 0.5, 0.7], [1.0, 0.8, 0.7], 1.0)
    assert score.tolist() == [0.2, 0.5, -np.inf]
    assert Rule(0.8, relative=True).score([0.2, 0.5], [0.9, 0.7], 0.9).tolist() == [0.2, -np.inf]


def test_interpolation_goes_through_the_points_and_adds_no_bumps() -> None:
    x, y = [0, 5, 10, 15, 20], [0.1, 0.6, 0.62, 0.62, 0.9]
    found = monotone(x, y, np.arange(21))
    assert found[x].tolist() == pytest.approx(y)
    assert (np.diff(found) >= -1e-12).all()
    assert found[11] == found[14] == pytest.approx(0.62)
    straight = monotone([0, 1, 4], [0, 1, 4], [0.5, 2, 3])
    assert straight.tolist() == pytest.approx([0.5, 2, 3])


def _searched(rule: Rule, at: Callable[[float], tuple[float, float]]) -> tuple[float | None, int]:
    search, found = ScaleSearch(rule, SCALES), {0.0: at(0.0)}
    while (scale := search.next(found)) is not None:
        assert scale not in found  # nothing twice
        found[scale] = at(scale)
    return search.best(found), len(found) - 1


def _curves(rng: np.random.Generator) -> dict[float, tuple[float, float]]:
    """Like those of adapters: likeness saturates, text following falls at some scale."""
    bend, width, rise = rng.uniform(0.3, 0.8), rng.uniform(0.04, 0.15), rng.uniform(2, 6)
    scales = np.array([0.0, *SCALES])
    likeness = 0.1 + 0.6 * (1 - np.exp(-rise * scales))
    text = 0.4 + 0.5 / (1 + np.exp((scales - bend) / width))
    points = np.stack([likeness, text], 1) + rng.normal(0, 0.003, (21, 2))
    return {scale: (float(one), float(other)) for scale, (one, other) in zip(scales, points)}  # noqa: B905


@pytest.mark.parametrize("rule", [Rule(), Rule(0.85), Rule(0.7), Rule(0.8, relative=True)], ids=str)
def test_the_search_finds_what_a_whole_sweep_finds(rule: Rule) -> None:
    rng = np.random.default_rng(0)
    distances = []
    for _ in range(60):
        curve = _curves(rng)
        points = np.array([*curve.values()])
        score = rule.score(points[:, 0], points[:, 1], points[0, 1])[1:]
        found, count = _searched(rule, curve.__getitem__)
        assert count <= SHARE * len(SCALES) - 1
        if not np.isfinite(score).any():
            assert found is None
            continue
        assert found is not None
        distances.append(abs(found - SCALES[int(np.argmax(score))]))
        assert distances[-1] < 0.0501 or score.max() - score[SCALES.index(found)] < 0.03
    assert len(distances) > 50
    assert np.mean(np.array(distances) < 0.0501) > 0.9


def test_a_search_that_cannot_succeed_ends() -> None:
    found, count = _searched(Rule(0.95), lambda scale: (scale, 0.9 - 0.5 * scale))
    assert (found, count) == (None, 3)
    found, count = _searched(Rule(0.1), lambda scale: (scale, 0.9 - 0.5 * scale))
    assert (found, count) == (1.0, 2)  # everything is allowed


def test_the_benchmark_on_a_study_that_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [*sweep({"plus": 0.0}, SCALES, prompts=5, seeds=1, noise=0.0)]
    study = write_study(tmp_path / "study", lines)
    monkeypatch.setattr(benchmark, "RESAMPLES", 3)
    command = ["x", "--study", str(study), "--json", str(tmp_path / "rows.json")]
    monkeypatch.setattr("sys.argv", command)
    benchmark.main()
    rows = json.loads((tmp_path / "rows.json").read_text("utf-8"))["rows"]
    found = {row["rule"]: row["found"] for row in rows}
    assert found["knee"] == 0.5  # where text following bends
    assert found[">= 0.8"] == 0.55  # .9 - .1 s - .8 (s - .5) is .805
    assert all(row["distance"] == 0 and row["share"] <= 0.4 for row in rows if row["optimum"])


# ── with the bundled stack ──────────────────────────────────────────────────────────────────────


@pytest.fixture(autouse=True, scope="module")
def quick(tiny_folder: Path) -> Iterator[None]:
    """The tiny stack in place of the bundled one, loaded once; it samples in one step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundled, "folder", lambda _=bundled.NAME: tiny_folder)
        patch.setattr(bundled, "STEPS", 1)
        patch.setattr(loading, "load_base", functools.cache(loading.load_base))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tune") / "tuned"


@pytest.fixture(scope="module")
def tuned(folder: Path) -> TuneResult:
    """Three of four scales, two pictures each."""
    return tune(QUICK, ">= 0%", presets=[STYLE], highest=0.2, studies=folder, progress=False)


def test_the_axes_of_the_bundled_stack_are_the_judge(tuned: TuneResult) -> None:
    assert (tuned.axes.likeness, tuned.axes.text) == ("attributes", "words")
    assert len(tuned.points) == 3  # of four, the largest first
    assert tuned.points[-1].scale == 0.2
    assert {point.preset for point in tuned.points} == {STYLE}
    assert tuned.control.setting.pictures == 2  # one for each text
    assert tuned.pictures == 2 * len(tuned.points) + 2
    assert tuned.exhaustive == 2 * 4 + 2
    assert tuned.controls == Controls(scale=tuned.best.scale, preset=tuned.best.preset)


def test_the_pictures_are_kept_as_one_study(tuned: TuneResult, folder: Path) -> None:
    results = read_results(folder)
    assert results.complete
    assert results.adapter.distinct() == ["plus, style transfer"]
    assert len(results) == tuned.pictures
    assert all(results.picture_path(row).is_file() for row in range(len(results)))
    assert all(results.reference_path(row).is_file() for row in range(len(results)))
    assert "plus, style transfer, scale 0.2" in (folder / "report.html").read_text("utf-8")


def test_a_second_run_generates_nothing_again(tuned: TuneResult, folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("pictures/**/*.png")}
    again = tune(QUICK, ">= 0%", presets=[STYLE], highest=0.2, studies=folder, progress=False)
    assert again.as_dict() == tuned.as_dict()
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("pictures/**/*.png")} == before


def test_the_command_writes_what_generate_reads(
    tuned: TuneResult, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    controls = tmp_path / "new" / "controls.json"
    words = ["tune", "--count", "1", "--prompt", "a star", "--prompt", "a red shape"]
    words += ["--highest", "0.2", "--text-following", ">= 0%"]
    words += ["--preset", "Style Transfer", "--studies", str(folder)]
    assert cli.main([*words, "--output", str(controls), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == tuned.as_dict()
    assert found["controls"] == json.loads(controls.read_text("utf-8"))
    made = ["generate", "--reference", str(next((folder / "references").iterdir()))]
    made += ["--prompt", "a star", "--controls", str(controls), "--output", str(tmp_path / "out")]
    assert cli.main(made) == 0
    recipe, _ = read_picture(next((tmp_path / "out").glob("*.png")))
    assert Controls.from_dict(recipe.references[0].controls) == tuned.controls


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--text-following", "< 1"], "text following '< 1': not a lower limit. Write '>= 0.9'"),
        (["--preset", "styl"], "styl"),
        (["--highest", "0.1"], "highest scale 0.1: there is nothing to search. Try 1."),
        (["--highest", "3"], "highest scale = 3.0: a scale is a number from 0"),
        (["--likeness", "dina"], "metric 'dina': not one of attributes, clip-i"),
        (["--base", "sd15"], "no adapter"),
        (["--base", "sd15", "--adapter", "plus"], "drawn ones suit bundled and bundled-sd3 only"),
        (["--output", "."], "--output .: is a folder. Name a file"),
        (["--text-following", ">= 90"], "at least 90: words is never above 1. Write '>= 0.9', or"),
        (["--adapter", "base", "--adapter", "plus"], "2 adapters: tune takes one"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["tune", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_limit_that_no_scale_keeps(folder: Path, tuned: TuneResult) -> None:
    with pytest.raises(OptionError, match=r"no scale has text following at least 1: the most is"):
        tune(QUICK, "1", presets=[STYLE], highest=0.2, studies=folder, progress=False)


def test_texts_that_nothing_can_be_followed_of() -> None:
    with pytest.raises(OptionError, match="metric words: no picture of text alone has a value"):
        tune(QUICK | {"prompts": [""]}, highest=0.2, progress=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"scale": 0.5, "preset": "nothing"}', "nothing"),
        ('{"scale": 9}', "scale"),
        ("[1]", "controls"),
        ("no json", "cannot be read"),
    ],
)
def test_a_file_of_controls_that_is_none(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "controls.json"
    path.write_text(text, encoding="utf-8")
    assert cli.main(["generate", "--controls", str(path)]) == 2
    error = capsys.readouterr().err
    assert "controls file" in error
    assert message in error
    assert error.count("\n") == 1
