"""docs/training-data.md: its configs are accepted, its commands exist, its sizes are right."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from imageprompt.cli import main
from imageprompt.training.config.config import TrainingConfig
from imageprompt.training.data.framing import PictureOptions
from imageprompt.training.data.sources import DataOptions

GUIDE = (Path(__file__).resolve().parents[2] / "docs" / "training-data.md").read_text("utf-8")


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", GUIDE, re.DOTALL)


@pytest.mark.parametrize("text", blocks("yaml"))
def test_its_configs_are_accepted(text: str) -> None:
    config = TrainingConfig.load({"data": "x", "output": "y"} | yaml.safe_load(text))
    assert DataOptions.of(config.data).path
    assert PictureOptions(resolution=config.resolution, buckets=config.buckets).sizes


@pytest.mark.parametrize("line", [line for text in blocks("sh") for line in text.splitlines()])
def test_its_commands_exist(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    program, *arguments = line.split()
    assert program == "imageprompt"
    assert main([*arguments, "--json"]) == 2  # there is no such config, and nothing else is wrong
    assert "there is no such file" in capsys.readouterr().err


def test_its_sizes_are_right() -> None:
    kilobytes = [int(n) for n in re.findall(r"\| (\d+) kB", GUIDE)]
    latents, text, patches = 8 * 64 * 64, 77, 257 * 1280
    numbers = [latents, 2 * latents, text * 768, text * 2048 + 1280, 1024, 1024, patches, patches]
    assert kilobytes == [round(2 * count / 1000) for count in numbers]
