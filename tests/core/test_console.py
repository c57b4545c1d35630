"""The terminal: one progress bar with the time left, tables, and the nearest word."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import imageprompt
from imageprompt.core.console import (
    Bars,
    Parser,
    aligned,
    did_you_mean,
    json_text,
    print_lines,
    print_table,
    print_text,
)
from imageprompt.core.errors import ImagePromptError, as_text, printable, shortened


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


# ── one door ────────────────────────────────────────────────────────────────────────────────────

PACKAGE = Path(imageprompt.__file__).parent
DOOR = PACKAGE / "core" / "console.py"
_WRITES = ("write", "writelines", "buffer", "print_exc", "print_exception", "print_help", "print")


def _prints(tree: ast.AST) -> Iterator[int]:
    """Lines of calls that write to a stream of the process by themselves."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        if isinstance(called, ast.Name) and called.id in ("print", "pprint"):
            yield node.lineno
        elif isinstance(called, ast.Attribute):
            owner = ast.unparse(called.value)
            ours = owner.startswith(("sys.std", "sys.__std", "tqdm", "traceback", "pprint"))
            if ours and called.attr in _WRITES:
                yield node.lineno


def test_only_the_console_prints() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}:{line}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path != DOOR
        for line in _prints(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert found == []


@pytest.mark.parametrize(
    "code",
    [
        "print(x)",
        "sys.stdout.write(x)",
        "sys.stderr.writelines(x)",
        "tqdm.write(x)",
        "traceback.print_exc()",
    ],
)
def test_what_counts_as_printing(code: str) -> None:
    assert list(_prints(ast.parse(code))) == [1]


NAMES = (
    "a\x1b[2J",
    "a\nb",
    "a\rb",
    "a\x9b",
    "a\x7f",
    "a\u202eb",
    "a\u2028b",
    "a\udc80",
    "\U000e0041",
)


@pytest.mark.parametrize("name", NAMES)
def test_names_of_strangers(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """They stay on their line, and JSON gives them back."""
    print_lines(name)
    print_table([{"name": name}], as_json=False)
    printed = capsys.readouterr().out.split("\n")
    assert printed == [printable(name), "name", "----", printable(name), ""] or len(printed) == 5
    assert all(line.isprintable() for line in printed)
    text = json_text({name: [name]})
    assert all(line.isprintable() for line in text.split("\n"))
    assert json.loads(text) == {name: [name]}
    assert as_text([name, "x"]).count("\n") == 1
    print_text(as_text([name, "x"]))
    assert capsys.readouterr().out == f"{printable(name)}\nx\n"


@pytest.mark.parametrize("text", ["Zürich", "日本語", "🍓", "café"])
def test_text_stays_as_it_is(text: str) -> None:
    assert printable(text) == text
    assert text in json_text([text])


def test_long_names_are_cut_in_the_middle() -> None:
    assert shortened("x" * 1500) == "x" * 1500
    message = str(ImagePromptError(f"/begin{'x' * 10**6}end", reason="too long", hint="Rename it."))
    assert message.startswith("/beginxxx")
    assert message.endswith("xxxend: too long. Rename it.")
    assert len(message) < 1600
