"""The README keeps its word: every command and snippet runs, every generated part is up to date."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
NOT_HERE = "<!-- needs downloads -->\n"  # marks blocks that fetch a model
BLOCKS = re.findall(rf"({re.escape(NOT_HERE)})?```(sh|python)\n(.*?)```", README, re.DOTALL)
SNIPPETS = [text for skip, kind, text in BLOCKS if kind == "python" and not skip]
COMMANDS = [
    text for skip, kind, text in BLOCKS if kind == "sh" and not skip and "make " not in text
]


def test_generated_parts_are_up_to_date() -> None:
    done = subprocess.run([sys.executable, ROOT / "dev" / "readme.py", "--check"], check=False)
    assert done.returncode == 0, "run: python dev/readme.py"


def test_every_picture_exists() -> None:
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", README)
    assert pictures
    assert all((ROOT / picture).is_file() for picture in pictures)


def test_the_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"(?:`|^)make\s([a-z-]+)", README, re.MULTILINE)
    assert len(targets) >= 2
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def _run(command: list[str], folder: Path) -> str:
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with what a reader of the README has at hand."""
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("text", COMMANDS)
def test_commands(text: str, folder: Path) -> None:
    _run(["bash", "-euc", text], folder)


@pytest.mark.slow
@pytest.mark.parametrize("text", SNIPPETS)
def test_snippets(text: str, folder: Path) -> None:
    _run([sys.executable, "-W", "ignore", "-c", text], folder)


def test_there_is_something_to_run() -> None:
    assert len(COMMANDS) >= 2
    assert len(SNIPPETS) >= 2


def test_the_downloads_name_every_option_right(tmp_path: Path) -> None:
    lines = [
        line
        for skip, _, text in BLOCKS
        if skip
        for line in text.replace("\\\n", " ").splitlines()
        if line.startswith("imageprompt ")
    ]
    assert any("--" in line for line in lines)
    for line in lines:
        usage = _run([*line.split()[:2], "--help"], tmp_path)
        assert all(option in usage for option in re.findall(r"--[a-z-]+", line)), line
