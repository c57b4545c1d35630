"""docs/rating.md: its commands run on a study of two adapters, with the answers of three raters."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from guides import DOCS, blocks, commands
from imageprompt import cli
from imageprompt.evaluation.statistics.paired import choices_needed, prompts_needed
from rated import answer, make_study

PAGE = DOCS / "rating.md"
GUIDE = PAGE.read_text("utf-8")
COMMANDS = commands(PAGE)
ADAPTERS = ("base", "plus")


def folder_of(study: Path, number: int) -> Path:
    """The pictures of one adapter under the names of their references."""
    folder = study.parent / ("ours", "theirs")[number]
    folder.mkdir()
    for prompt in range(6):
        shutil.copy(study / "pictures" / f"{prompt}-0-{number}.png", folder / f"{prompt}.png")
    return folder


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a reader of the guide has: a study, and the folders of two programs."""
    monkeypatch.chdir(tmp_path)
    made = make_study(tmp_path / "study", adapters=ADAPTERS)
    for number in range(2):
        folder_of(made, number)
    shutil.copytree(made / "references", tmp_path / "references")
    return made


def answers(key: dict[str, Any]) -> None:
    """Three raters; the last one errs on a planted question, and in what comes twice."""

    def prefers(*equal: str) -> Any:
        return lambda item: "equal" if any(c in item["prompt"] for c in equal) else "plus"

    answer(Path("anna.json"), key, "anna", prefers("green", "teal"))
    answer(Path("ben.json"), key, "ben", prefers("blue"))
    path = answer(Path("cy.json"), key, "cy", lambda item: ADAPTERS["seed 0" in item["subject"]])
    plain = json.loads(path.read_text())
    (planted,) = (item for item in key["items"] if item["expected"])
    for one in plain["answers"]:
        if one["item"] == planted["id"]:
            one["choice"] = next(p for p in planted["pictures"] if p != planted["expected"])
    plain["answers"][-1]["choice"] = "equal"
    path.write_text(json.dumps(plain))


def test_commands_and_what_they_print(study: Path) -> None:
    assert [command[0] for command in COMMANDS] == ["rate", "rate", "ratings", "ratings"]
    printed = []
    for command in COMMANDS:
        with contextlib.redirect_stdout(io.StringIO()) as stream:
            assert cli.main(command) == 0
        printed.append(stream.getvalue())
        if command == ["rate", "study"]:
            answers(json.loads(Path("rating/rate-key.json").read_text()))
    (shown,) = blocks(PAGE, "text")
    ids = re.compile(r"q\d{4}")  # drawn by a hash of the files, which no Pillow writes alike
    assert ids.sub("q", printed[2]) == ids.sub("q", shown)
    assert json.loads(printed[3])["raters"][2]["dropped"]
    assert Path("comparison/rate.html").is_file()


def test_options_of_the_table_exist(study: Path) -> None:
    table = re.findall(r"^\| `(--.*)` \|", GUIDE, re.MULTILINE)
    assert len(table) == 5
    for row in ("--mode scales", "--count 4", "--question x", "--folder", "--scale 0.6"):
        assert any(row.split()[0] in line for line in table)
        assert cli.main(["rate", "study", "--output", row.split()[0][2:], *row.split()]) == 0


def test_figures_are_those_of_the_code() -> None:
    preferences, choices = re.findall(r"^\| (?:true preference|choices) \| (.*) \|$", GUIDE, re.M)
    for share, count in zip(preferences.split(" | "), choices.split(" | "), strict=True):
        assert choices_needed(int(share.removesuffix(" %")) / 100) == int(count)
    found = re.search(
        r"half a standard deviation needs (\d+) prompts, and one of a fifth (\d+)", GUIDE
    )
    assert found is not None
    assert [int(one) for one in found.groups()] == [prompts_needed(0.5, 1), prompts_needed(0.2, 1)]


def test_the_screenshot_is_small() -> None:
    assert (DOCS / "rating.png").stat().st_size < 150_000
