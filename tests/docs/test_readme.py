"""README.md is short, every command and snippet in it runs, and its generated parts are current."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import forked
from guides import DOCS, ROOT, blocks, commands, commands_of, pages, run
from ids import stable
from imageprompt import cli, loading
from imageprompt.core import bundled
from imageprompt.evaluation.study import run as study

PAGE = ROOT / "README.md"
README = PAGE.read_text("utf-8")
COMMANDS = [text for text in blocks(PAGE, "sh") if "make " not in text]
SNIPPETS = blocks(PAGE, "python")
LIMIT = 200  # lines that a stranger reads


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= LIMIT
    figures = README.split("## Measured\n")[1].split("\n## ")[0]
    assert README.count("\n|---") == 2, "a table of figures, one of what is supported"
    assert figures.count("\n|---") == 1


def test_generated_parts_are_up_to_date() -> None:
    script = ROOT / "dev" / "generated_docs.py"
    done = subprocess.run([sys.executable, script, "--check"], check=False)
    assert done.returncode == 0, "run: python dev/generated_docs.py"


def test_every_picture_and_link_exists() -> None:
    """In README.md and in CONTRIBUTING.md; the site's own links are checked when it is built."""
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", README)
    assert pictures
    for page in (PAGE, ROOT / "CONTRIBUTING.md"):
        targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text("utf-8"))
        local = [target for target in targets if not target.startswith("http")]
        assert local
        assert [target for target in local if not (ROOT / target).is_file()] == []


def test_the_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for page in pages():
        text = page.read_text("utf-8")
        for target in re.findall(r"(?:`|^)make\s([a-z-]+)", text, re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), (page, target)
    assert {"demo", "test"} <= set(re.findall(r"^make ([a-z-]+)", README, re.MULTILINE))


def test_every_guide_is_linked() -> None:
    linked = set(re.findall(r"\]\((docs/[a-z/-]+\.md)\)", README))
    site_only = {"docs/index.md", "docs/benchmarks.md", "docs/changelog.md", "docs/contributing.md"}
    every = {p.relative_to(ROOT).as_posix() for p in pages() if p.parent != ROOT}
    assert {page for page in every - linked - site_only if "/workflows/" not in page} == {
        f"docs/reference/{name}.md" for name in ("commands", "metrics", "python")
    }
    index = (DOCS / "workflows.md").read_text("utf-8")
    for page in (DOCS / "workflows").glob("*.md"):
        assert f"(workflows/{page.name})" in index


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a reader of README.md is; the bundled stack is loaded once and samples in two steps.

    The page of a study is written in test_evaluation_guide.py.
    """
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "reference.png", tmp_path / "docs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bundled, "STEPS", 2)
    monkeypatch.setattr(loading, "load_base", functools.cache(loading.load_base))
    monkeypatch.setattr(study, "_write_report", lambda folder: folder / "report.html")
    return tmp_path


def test_there_is_something_to_run() -> None:
    assert len(COMMANDS) >= 5
    assert len(SNIPPETS) == 1


def shortened(command: list[str]) -> list[str]:
    """The command with fewer scenes and steps; everything else as a reader types it."""
    words = list(command)
    if "--num-scenes" in words:
        words[words.index("--num-scenes") + 1] = "24"
    fewer = {"steps=30": "steps=4", "warm_start_steps=30": "warm_start_steps=10"}
    return [fewer.get(word, word) for word in words]


@pytest.mark.slow
@pytest.mark.parametrize("text", COMMANDS, ids=stable)
def test_commands(text: str, folder: Path) -> None:
    found = commands_of(text)
    assert found
    for command in found:
        assert run(shortened(command)) == 0, command


@pytest.mark.slow
def test_the_snippet_in_a_process_of_its_own(folder: Path) -> None:
    (snippet,) = SNIPPETS
    quick = snippet.replace("num_inference_steps=20", "num_inference_steps=2")
    done = forked.run(quick, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "reference.safetensors").is_file()


def test_the_downloads_name_every_option_right() -> None:
    found = commands(PAGE, needs_downloads=True)
    assert any("--adapter" in command for command in found)
    for command in found:
        assert cli.command_parser(command[0]).parse_args(command[1:]).run
