"""What the reports on adapter files share: problems, lists of names, sizes, columns."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from imageprompt.core.errors import printable
from imageprompt.core.spec import OWN_BASE

MAX_NAMES = 5  # names in a message
MAX_TEXT = 200  # characters of text out of a file that are shown


@dataclass(frozen=True)
class Problem:
    """Something wrong with a file: a short code, and a one-line message."""

    code: str
    message: str


def problem_dicts(problems: Iterable[Problem]) -> list[dict[str, str]]:
    """Problems as JSON."""
    return [{"code": problem.code, "message": problem.message} for problem in problems]


def first_names(names: Iterable[str]) -> str:
    """The first five names, and whether there are more."""
    names = list(names)
    return ", ".join(names[:MAX_NAMES]) + (", ..." if len(names) > MAX_NAMES else "")


def tensors_that(names: Collection[str], one: str, several: str) -> str:
    """A sentence about tensors, in the right number: "1 tensor is odd (a)"."""
    subject = f"1 tensor {one}" if len(names) == 1 else f"{len(names)} tensors {several}"
    return f"{subject} ({first_names(names)})"


def base_name(host: str) -> str:
    """A family of bases by name; one that is not published is a custom UNet."""
    return "custom UNet" if host == OWN_BASE else host


def size_text(count: int) -> str:
    """A number of bytes for people: 44.6 MB."""
    size = float(count)
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


def shown(text: str, limit: int = MAX_TEXT) -> str:
    """The start of a text out of a file, on one line that a terminal takes for nothing else."""
    return printable(text[:limit]) + ("..." if len(text) > limit else "")


def rows(table: Iterable[tuple[str, str]]) -> list[str]:
    """Name and text in two columns; rows without text are left out."""
    filled = [(name, text) for name, text in table if text]
    width = max((len(name) for name, _ in filled), default=0)
    return [f"  {name:{width}}  {text}" for name, text in filled]
