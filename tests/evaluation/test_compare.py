"""`imageprompt compare`: pairs, what a difference is worth, and what cannot be compared."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from imageprompt import cli
from imageprompt.core.errors import OptionError
from imageprompt.evaluation.compare import compare, part_of
from imageprompt.evaluation.study.results import Results, read_results
from studies import Line, line, sweep, write_study


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("compare") / "study", [*sweep()])


@pytest.fixture(scope="module")
def results(study: Path) -> Results:
    return read_results(study)


def _written(folder: Path, lines: list[Line]) -> Results:
    return read_results(write_study(folder, lines))


def test_a_known_difference_is_found(results: Results) -> None:
    found = compare(part_of(results, "base", 0.5), part_of(results, "plus", 0.5))
    dino, clip_t = found.rows
    assert (found.a, found.b, len(found.pairs[0])) == ("base, scale 0.5", "plus, scale 0.5", 16)
    assert (dino.metric, dino.better) == ("dino", "B")
    assert dino.result.difference == pytest.approx(0.04)
    assert dino.b - dino.a == pytest.approx(0.04)
    assert dino.result.p == 2 / 2**8  # eight prompts, and all differ in the same direction
    assert dino.p_holm == 2 * dino.result.p  # two metrics
    assert dino.wins == 1.0
    assert (clip_t.result.difference, clip_t.better, clip_t.wins) == (0, None, 0.5)
    assert found.verdict == "plus, scale 0.5 is better at dino."


def test_all_scales_count_where_both_sides_have_them(results: Results) -> None:
    found = compare(part_of(results, "base"), part_of(results, "plus"))
    assert len(found.pairs[0]) == 4 * 16
    assert found.rows[0].result.clusters == 8  # seeds and scales of a prompt are one cluster
    assert found.rows[0].result.difference == pytest.approx(0.04)


def test_two_scales_of_an_adapter(results: Results) -> None:
    found = compare(part_of(results, "plus", 0.5), part_of(results, "plus", 1.0))
    assert [row.better for row in found.rows] == ["B", "A"]
    assert found.verdict.startswith("plus, scale 0.5 is better at clip-t; plus, scale 1 is better")


def test_of_a_distance_the_lower_is_better(tmp_path: Path) -> None:
    lines = [
        line(adapter, prompt=f"p{prompt}", reference=f"{prompt}.png", lab=value)
        for adapter, value in (("base", 8.0), ("plus", 5.0))
        for prompt in range(8)
    ]
    both = _written(tmp_path, lines)
    (row,) = compare(part_of(both, "base"), part_of(both, "plus")).rows
    assert (row.result.difference, row.better, row.wins) == (-3, "B", 1.0)


def test_unequal_sets_are_refused_with_what_is_missing(tmp_path: Path) -> None:
    lines = [line(prompt=f"p{number:02}", dino=0.5) for number in range(24)]
    a, b = _written(tmp_path / "a", lines[12:]), _written(tmp_path / "b", lines[:-1])
    with pytest.raises(
        OptionError, match=r"A lacks 12 of 24: 'p00'.*'p09'.*; and 2 more"
    ) as raised:
        compare(a, b)
    assert "B lacks 1 of 24: 'p23', references/0.png, seed 1." in str(raised.value)
    assert "'p10'" not in str(raised.value)


def test_a_picture_twice_is_refused(tmp_path: Path) -> None:
    once, twice = [line(dino=0.5)], [line(dino=0.5), line(dino=0.6)]
    a, b = _written(tmp_path / "a", once), _written(tmp_path / "b", twice)
    with pytest.raises(OptionError, match=r"B, .*: has two pictures of 'a star', ref.*, seed 1"):
        compare(a, b)


def test_another_encoder_or_preprocessing_is_refused(tmp_path: Path) -> None:
    other = line(dino=0.6, clip_t=0.1)
    other["extractors"] = other["extractors"] | {"dino": "0ther"}
    a, b = _written(tmp_path / "a", [line(dino=0.5, clip_t=0.1)]), _written(tmp_path / "b", [other])
    with pytest.raises(
        OptionError, match="not comparable because the dino encoder or its prepr"
    ) as e:
        compare(a, b)
    assert "own encoder 64 px, bicubic d1n0 in A" in str(e.value)
    assert "0ther in B" in str(e.value)
    assert compare(a, b, ["clip-t"]).rows[0].metric == "clip-t"  # another encoder, not changed


def test_another_picture_of_the_same_name_is_refused(tmp_path: Path) -> None:
    other = line(dino=0.6)
    other["hashes"] = other["hashes"] | {"reference": "another"}
    a, b = _written(tmp_path / "a", [line(dino=0.5)]), _written(tmp_path / "b", [other])
    with pytest.raises(OptionError, match=r"because these references differ: references/0.png \(1"):
        compare(a, b)


def test_a_base_that_differs_is_said(tmp_path: Path) -> None:
    other = line(dino=0.6) | {"base": "another"}
    a, b = _written(tmp_path / "a", [line(dino=0.5)]), _written(tmp_path / "b", [other])
    notes = compare(a, b).notes
    assert any(note.startswith("the bases differ: bundled") for note in notes)
    assert any("p cannot fall below 1" in note for note in notes)  # one prompt


def test_pairs_without_a_value_are_counted(tmp_path: Path) -> None:
    a = [line(prompt=f"p{number}", dino=0.5, lpips=None) for number in range(6)]
    b = [line(prompt=f"p{number}", dino=0.6, lpips=0.2) for number in range(6)]
    b[2]["metrics"]["dino"] = None
    found = compare(_written(tmp_path / "a", a), _written(tmp_path / "b", b))
    (row,) = found.rows
    assert (row.metric, row.left_out, row.result.pairs) == ("dino", 1, 5)
    assert "lpips: no pair has a finite value" in found.notes
    assert "dino: 1 pairs without a finite value are left out" in found.notes


def test_the_same_file_twice_is_suspected(results: Results) -> None:
    part = part_of(results, "plus", 0.5)
    found = compare(part, part)
    assert found.verdict == "No metric tells the two apart: the differences may be chance."
    assert any("the same file?" in note for note in found.notes)


# ── the command ─────────────────────────────────────────────────────────────────────────────────


def _run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    code = cli.main(["compare", *map(str, words)])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_command_prints_a_table(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = _run(capsys, study, "--scale", "0.5")  # of two adapters, these two
    assert code == 0
    assert out.startswith("A: base, scale 0.5\nB: plus, scale 0.5\n16 pairs of 8 prompts\n")
    assert re.search(r"^dino +0\.4\d+ +0\.4\d+ +\+0\.04 ", out, re.MULTILINE)
    assert out.rstrip().endswith("plus, scale 0.5 is better at dino.")


def test_json(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--adapter", "base", "--adapter", "plus", "--scale", "0.5", "--metric", "dino")
    code, out, _ = _run(capsys, study, *flags, "--json")
    found = json.loads(out)
    assert code == 0
    assert [*found] == ["a", "b", "pairs", "unit", "metrics", "notes"]
    dino = found["metrics"]["dino"]
    assert dino["p"] == dino["p_holm"] == 2 / 2**8  # a single metric
    assert dino["interval"][0] <= dino["difference"] <= dino["interval"][1]
    assert (dino["better"], dino["win_rate"], dino["higher_is_better"]) == ("B", 1.0, True)


def test_a_page(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "new" / "page.html"
    code, out, _ = _run(capsys, study, "--scale", "0.5", "--output", page)
    assert code == 0
    assert out.rstrip().endswith(str(page))
    text = page.read_text(encoding="utf-8")
    assert "base, scale 0.5 against plus, scale 0.5" in text
    assert "plus, scale 0.5 is better at dino." in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--adapter", "pluss", "--adapter", "base"), "Did you mean plus? It has base and plus."),
        (("--scale", "0.6"), "scale 0.6: not in this study. It has 0.25, 0.5, 0.75 and 1."),
        (("--metric", "dina"), "metric 'dina': not in both. Did you mean dino?"),
        (("--adapter", "base"), "one study: which two to compare is not said"),
        (("--scale", "1") * 3, "--scale 3 times: there are two sides, A and B"),
        (("--scale", "0.5", "--scale", "1"), "A, .* has pictures of base and plus. Name one"),
    ],
)
def test_bad_input_is_one_line(
    words: tuple[str, ...], message: str, study: Path, capsys: pytest.CaptureFixture[str]
) -> None:

    code, out, err = _run(capsys, study, *words)
    assert (code, out) == (2, "")
    assert re.search(message if ".*" in message else re.escape(message), err)
    assert err.count("\n") == 1


def test_a_folder_that_is_no_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = _run(capsys, tmp_path, tmp_path)
    assert code == 2
    assert "has no results.jsonl. Make one with `imageprompt evaluate" in err
