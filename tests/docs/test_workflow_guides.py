"""docs/workflows.md and the guides of picture workflows: their commands and snippets run."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from guides import DOCS, blocks, commands
from imageprompt import cli
from imageprompt.demo import scenes
from imageprompt.workflows import WORKFLOWS

NAMES = ("product", "restyle", "replace", "colourise", "variations")
PAGES = [DOCS / "workflows.md", *(DOCS / "workflows" / f"{name}.md" for name in NAMES)]
RUNS = sorted({shlex.join(command) for page in PAGES for command in commands(page)})
PAIR = "--method pair"
"""The fast stack has no pair of adapters."""


@pytest.fixture
def folder(tiny_bundled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: the pictures that the guides name, and a fast stack."""
    names = ("shoe", "beach", "room", "oil", "table", "vase", "old", "summer")
    for name, scene in zip(names, scenes.stream("test", seed=5), strict=False):
        scenes.draw(scene).save(tmp_path / f"{name}.png")
    Image.open(tmp_path / "old.png").save(tmp_path / "summer2.png")
    mask = np.zeros((64, 64), np.uint8)
    mask[20:44, 20:44] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_workflow_has_a_guide() -> None:
    index = PAGES[0].read_text("utf-8")
    for one in WORKFLOWS:
        if (DOCS / "workflows" / f"{one.name}.md").exists():
            assert f"(workflows/{one.name}.md)" in index
    assert {words.split()[2] for words in RUNS if words.startswith("workflow run")} == set(NAMES)


@pytest.mark.parametrize("line", [line for line in RUNS if PAIR not in line])
def test_commands(line: str, folder: Path) -> None:
    command = shlex.split(line)
    if command[1] == "run":
        command += ["--steps", "2"]
        if "40" in command:  # wider than the fast stack's pictures
            command[command.index("40")] = "8"
    assert cli.main(command) == 0
    assert len(list(folder.glob("pictures/*-sheet.png"))) == (command[1] == "run")


@pytest.mark.parametrize("line", [line for line in RUNS if PAIR in line])
def test_commands_of_the_bundled_pair(
    line: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the bundled stack itself
    monkeypatch.chdir(folder)
    assert cli.main([*shlex.split(line), "--steps", "2"]) == 0
    assert len(list(folder.glob("pictures/*-sheet.png"))) == 1


def test_the_python_snippet(folder: Path) -> None:
    (snippet,) = blocks(PAGES[0], "python")
    exec(snippet, {})
    assert (folder / "pictures/0001.png").is_file()
