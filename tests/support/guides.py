"""The code blocks of README.md and of the pages in docs/: what a reader would run."""

from __future__ import annotations

import contextlib
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
NEEDS_DOWNLOADS = "<!-- needs downloads -->\n"
_BLOCK = re.compile(
    rf"^({re.escape(NEEDS_DOWNLOADS)})?```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE
)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and whether it fetches a model."""

    language: str
    text: str
    needs_downloads: bool


def blocks(page: Path, language: str, *, needs_downloads: bool = False) -> list[str]:
    """The texts of a page's blocks in a language."""
    return [
        block.text
        for block in all_blocks(page)
        if block.language == language and block.needs_downloads == needs_downloads
    ]


def all_blocks(page: Path) -> list[Block]:
    """Every fenced block of a page that names a language, in order."""
    return [
        Block(language, text, bool(mark))
        for mark, language, text in _BLOCK.findall(page.read_text("utf-8"))
    ]


def commands(page: Path, *, needs_downloads: bool = False) -> list[list[str]]:
    """The `imageprompt` commands in a page's sh blocks, without the program's name."""
    return commands_of("\n".join(blocks(page, "sh", needs_downloads=needs_downloads)))


def commands_of(text: str) -> list[list[str]]:
    """The `imageprompt` commands in a shell text, without the program's name."""
    joined = text.replace("\\\n", " ")
    lines = [shlex.split(line, comments=True) for line in joined.splitlines()]
    return [words[1:] for words in lines if words and words[0] == "imageprompt"]


def run(command: list[str]) -> int:
    """The exit code of a command in this process; `> FILE` at its end works as in a shell."""
    from imageprompt import cli

    if ">" not in command:
        return cli.main(command)
    *words, arrow, target = command
    assert arrow == ">"
    with Path(target).open("w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        return cli.main(words)


def pages() -> list[Path]:
    """README.md, CONTRIBUTING.md, CHANGELOG.md and every page of the site."""
    top = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    return top + sorted(p for p in DOCS.rglob("*.md") if "_build" not in p.parts)
