"""The terminal: one progress bar with the time left, tables, and the nearest word."""

from __future__ import annotations

import pytest

from imageprompt.core.console import Bars, Parser, aligned, did_you_mean, print_table


def test_one_bar_for_all_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    with Bars(True) as bars:
        for step in range(1, 61):
            bars.update(f"picture {step // 12 + 1} of 6", step, 60)
    text = capsys.readouterr().err
    assert "picture 6 of 6" in text
    assert "100%" in text
    assert "left" in text
    assert text.count("\n") == 1


def test_a_new_phase_gets_a_new_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with Bars(True) as bars:
        bars.update("scan", 5, 5)
        bars.update("pictures", 1, 5)
        bars.update("pictures", 5, 5)
    first, second = capsys.readouterr().err.rstrip("\n").split("\n")
    assert "scan" in first
    assert "pictures" in second
    assert "scan" not in second


def test_lines_beside_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with Bars(True) as bars:
        bars.log("before")
        bars.update("scan", 1, 5)
        bars.log("between")
        bars.update("scan", 5, 5)
    lines = [line.split("\r")[-1] for line in capsys.readouterr().err.split("\n")]
    assert lines[:2] == ["before", "between"]
    assert "scan" in lines[2]


def test_no_bars_unless_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with Bars(False) as bars:
        bars.update("picture 1 of 2", 1, 2)
        assert capsys.readouterr() == ("", "")
        bars.log("a line")
    assert capsys.readouterr() == ("", "a line\n")


@pytest.mark.parametrize(
    ("word", "nearest"),
    [
        ("generat", "generate"),
        ("gen", "generate"),
        ("--refrence", "--reference"),
        ("--ref", "--reference"),
        ("-reference", "--reference"),
        ("--json", None),
        ("-", None),
    ],
)
def test_the_nearest_word(word: str, nearest: str | None) -> None:
    known = ["generate", "library", "--reference", "--version", "--negative-reference"]
    assert did_you_mean(word, known) == (f". Did you mean {nearest}?" if nearest else "")


def test_errors_name_the_parser_that_met_them(capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser(prog="imageprompt")
    below = parser.add_subparsers(parser_class=Parser).add_parser("library")
    below.add_argument("--sheet", type=int)
    for arguments, line in (
        (["library", "--sheet", "x"], "argument --sheet: invalid int value: 'x'."),
        (["library", "--shee", "1"], "unknown flag --shee. Did you mean --sheet?"),
        (["library", "one"], "unexpected argument 'one'."),
    ):
        with pytest.raises(SystemExit) as stopped:
            parser.parse_args(arguments)
        assert stopped.value.code == 2
        assert capsys.readouterr().err == (
            f"imageprompt library: {line} See imageprompt library --help\n"
        )


def test_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(aligned([("a", "bb"), ("ccc", "d")])) == ["  a    bb", "  ccc  d"]
    rows = [{"name": "one", "tags": ["a", "b"]}, {"name": "two", "tags": None}]
    assert print_table(rows, as_json=False) == 0
    assert capsys.readouterr().out == "name  tags\n----  ----\none   a, b\ntwo   -\n"
