"""docs/training-data.md: its configs load, its commands parse, and its sizes are right."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from guides import DOCS, blocks, commands
from ids import stable
from imageprompt import cli
from imageprompt.training.config.config import TrainingConfig
from imageprompt.training.data.sources import DataOptions
from imageprompt.training.data.views import PictureOptions

PAGE = DOCS / "training-data.md"
GUIDE = PAGE.read_text("utf-8")
COMMANDS = commands(PAGE)


@pytest.mark.parametrize("text", blocks(PAGE, "yaml"), ids=stable)
def test_its_configs_are_accepted(text: str) -> None:
    config = TrainingConfig.load({"data": "x", "output": "y"} | yaml.safe_load(text))
    assert DataOptions.of(config.data).path
    assert PictureOptions(resolution=config.resolution, buckets=config.buckets).sizes


def test_there_is_something_to_run() -> None:
    assert [command[0] for command in COMMANDS] == ["build-cache"] * 3


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_its_commands_run_as_far_as_the_config(
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """There is no such config here, and nothing else is wrong."""
    monkeypatch.chdir(tmp_path)
    assert cli.main([*command, "--json"]) == 2
    assert "config.yaml" in capsys.readouterr().err


def test_its_sizes_are_right() -> None:
    kilobytes = [int(n) for n in re.findall(r"\| (\d+) kB", GUIDE)]
    latents, text, patches = 8 * 64 * 64, 77, 257 * 1280
    numbers = [latents, 2 * latents, text * 768, text * 2048 + 1280, 1024, 1024, patches, patches]
    assert kilobytes == [round(2 * count / 1000) for count in numbers]
