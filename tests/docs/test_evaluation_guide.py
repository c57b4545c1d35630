"""docs/evaluation.md: its commands and snippets run."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import yaml

import guides
from guides import DOCS, blocks, commands
from imageprompt import loading
from imageprompt.core import bundled
from imageprompt.demo import scenes
from imageprompt.evaluation.study import run
from imageprompt.evaluation.study.config import StudyConfig
from imageprompt.evaluation.study.results import read_lines

PAGE = DOCS / "evaluation.md"
COMMANDS = commands(PAGE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the guide names: photos, prompts and a study file; studies of earlier commands stay."""
    root = tmp_path_factory.mktemp("evaluation")
    (root / "photos").mkdir()
    for index, scene in enumerate(islice(scenes.stream("test", seed=3), 2)):
        scenes.draw(scene).save(root / "photos" / f"{index}.png")
    (root / "prompts.txt").write_text("a star\n")
    (root / "study.yaml").write_text(blocks(PAGE, "yaml")[0])
    return root


@pytest.fixture(autouse=True, scope="module")
def quick(tiny_folder: Path) -> Iterator[None]:
    """The tiny stack in place of the bundled one, loaded once; it samples in one step.

    The page of the first study is written, those of the others are not.
    """
    write = run._write_report

    def first(folder: Path) -> Path:
        return write(folder) if folder.name == "study" else folder / "report.html"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundled, "folder", lambda _=bundled.NAME: tiny_folder)
        patch.setattr(bundled, "STEPS", 1)
        patch.setattr(loading, "load_base", functools.cache(loading.load_base))
        patch.setattr(run, "_write_report", first)
        yield


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_commands(command: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert guides.run(command) == 0


def test_snippets(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for snippet in blocks(PAGE, "python"):
        exec(compile(snippet, "docs/evaluation.md", "exec"), {})


def test_a_line_is_as_shown(folder: Path) -> None:
    shown: dict[str, Any] = json.loads(blocks(PAGE, "json")[0])
    line = next(one for one in read_lines(folder / "study") if one["row"] == "adapter")
    assert [*line] == [*shown]
    assert len([*read_lines(folder / "study")]) == 85 + 15 + 4  # control rows share pictures


def test_commands_that_download_are_well_formed() -> None:
    """Their files are not here; their flags are checked."""
    from imageprompt.cli import command_parser

    for name, *arguments in commands(PAGE, needs_downloads=True):
        command_parser(name).parse_args(arguments)


def test_the_study_file_is_one() -> None:
    assert StudyConfig.load(yaml.safe_load(blocks(PAGE, "yaml")[0])).scales == (0.5, 1.0)
