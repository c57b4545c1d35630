"""docs/control.md: its commands and snippets run, and its tables equal the code's."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from guides import DOCS, blocks, commands
from ids import stable
from imageprompt import cli, loading
from imageprompt.control import Controls
from imageprompt.control.controls import requested_scales
from imageprompt.control.presets import PRESETS
from imageprompt.core import bundled
from imageprompt.demo import scenes
from imageprompt.hosts.unet import FAMILIES, HOST

PAGE = DOCS / "control.md"
GUIDE = PAGE.read_text("utf-8")
COMMANDS = commands(PAGE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures that the guide names: references, and masks of one half each."""
    root = tmp_path_factory.mktemp("control")
    for name, index in (("a", 1), ("b", 4)):
        scene = next(s for i, s in enumerate(scenes.stream("test")) if i == index)
        scenes.draw(scene).save(root / f"{name}.png")
    scenes.draw(scene, 128).crop((0, 20, 128, 100)).save(root / "photo.png")
    left = np.zeros((64, 64), np.uint8)
    left[:, :32] = 255
    Image.fromarray(left).save(root / "left.png")
    Image.fromarray(255 - left).save(root / "right.png")
    return root


@pytest.fixture(autouse=True, scope="module")
def two_steps() -> Any:
    """Load the bundled stack once, and sample in two steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundled, "STEPS", 2)
        patch.setattr(loading, "load_base", functools.cache(loading.load_base))
        yield


def test_there_is_something_to_run() -> None:
    assert len(COMMANDS) >= 20
    assert {"presets", "generate", "check", "probe"} == {command[0] for command in COMMANDS}


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_commands(command: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    before = len(list(folder.glob("outputs/*.png")))
    if command[0] == "probe":
        command = [*command, "--count", "2"]
    elif "probed/style.json" in command:  # with only two references, the probe may find none
        Path("probed").mkdir(exist_ok=True)
        Path("probed/style.json").write_text('{"up_blocks.1": 1.0}')
    assert cli.main(command) == 0
    assert len(list(folder.glob("outputs/*.png"))) == before + (command[0] == "generate")


@pytest.mark.parametrize("command", commands(PAGE, needs_downloads=True), ids=" ".join)
def test_commands_that_need_downloads_are_parsed(command: list[str]) -> None:
    assert cli.command_parser(command[0]).parse_args(command[1:]).run


@pytest.mark.parametrize("snippet", blocks(PAGE, "python"), ids=stable)
def test_snippets(
    snippet: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    exec(compile(snippet, "docs/control.md", "exec"), {})
    printed = re.findall(r"print\(.*\)\s+# (\S+) for", snippet)
    assert printed == capsys.readouterr().out.splitlines()[: len(printed)]


def test_roles_are_those_of_the_bundled_base() -> None:
    (stated,) = blocks(PAGE, "json")
    config = json.loads((bundled.folder() / "unet" / "config.json").read_text())
    key, value = stated.split(": ", 1)
    assert json.loads(value) == config[json.loads(key)]


def test_the_table_of_presets() -> None:
    """Every preset has its row, and the transformers in it are those that the code gives."""
    table = GUIDE.split("| preset |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| `([^`]+)` \|[^|]*\|([^|]*)\|([^|]*)\|$", table, re.MULTILINE)
    assert [name for name, *_ in rows] == list(PRESETS)
    for name, *cells in rows:
        for family, cell in zip(("sd15", "sdxl"), cells, strict=True):
            spec = HOST.from_config(FAMILIES[family])
            assert spec is not None
            scales = requested_scales(Controls(preset=name), spec.sites)
            in_code = {
                (site.transformer_index, scale.on_negative)
                for site, scale in zip(spec.sites, scales, strict=True)
                if scale is not None
            }
            positive, _, negative = cell.strip(" )").partition("(")
            in_guide = {(t, False) for t in numbers(positive)}
            in_guide |= {(t, True) for t in numbers(negative)}
            assert in_code == in_guide, (name, family)


def numbers(text: str) -> set[int]:
    """The numbers in a text such as "0-3, 9"."""
    found = re.findall(r"(\d+)(?:-(\d+))?", text)
    return {n for first, last in found for n in range(int(first), int(last or first) + 1)}


def test_pictures_are_there_and_small() -> None:
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", GUIDE)
    assert len(pictures) == len(set(pictures)) == 5
    assert all((DOCS / name).stat().st_size < 150_000 for name in pictures)


def test_the_benchmark_behind_its_figures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It runs from end to end, on as few pictures as give an interval."""
    import control

    parts = ["presets", "masks", "fusions"]
    options = ["--count", "2", "--steps", "1", "--json", str(tmp_path / "report.json")]
    monkeypatch.setattr("sys.argv", ["control", *options, "--only", *parts])
    control.main()
    report = json.loads((tmp_path / "report.json").read_text())
    assert set(report) == {*parts, "settings"}
    rows = report["presets"]["style"]["preset style"]
    assert all(0 <= cell["share"] <= 1 for cell in rows["reference"].values())
    assert "### masks" in capsys.readouterr().out
