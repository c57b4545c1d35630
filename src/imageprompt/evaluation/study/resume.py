"""What exists of a study in its folder: is it the same study, and how much of it is finished?"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from imageprompt.core.atomic_files import write_atomically
from imageprompt.core.console import json_text
from imageprompt.core.errors import OptionError
from imageprompt.core.yaml_file import brief
from imageprompt.evaluation.study.plan import Plan, Row
from imageprompt.evaluation.study.results import (
    PLAN,
    RESULTS,
    complete_lines,
    read_json,
    read_lines,
)

_MOST_NAMED = 5


def write_json(path: Path, plain: Any) -> None:
    """Write a JSON file, or leave it as it was."""
    with write_atomically(path) as temporary:
        temporary.write_text(f"{json_text(plain)}\n", encoding="utf-8")


def check_unchanged(folder: Path, stated: Mapping[str, Any]) -> None:
    """Is the study in the folder the one that plan.json is to state?

    Raises OptionError that names what changed.
    """
    before = read_json(folder / PLAN)
    if before is None:
        if (folder / RESULTS).exists():
            raise OptionError(
                f"output folder {str(folder)!r}",
                reason=f"has {RESULTS} without {PLAN}, which says what they are",
                hint="Choose another output.",
            )
        return
    if changed := [*_differences(before, stated)]:
        more = f"; and {len(changed) - _MOST_NAMED} more" if len(changed) > _MOST_NAMED else ""
        raise OptionError(
            f"output folder {str(folder)!r}",
            reason=f"has another study: {'; '.join(changed[:_MOST_NAMED])}{more}",
            hint="Choose another output, or delete this folder.",
        )


def count_lines(folder: Path) -> int:
    """The complete lines of the results; 0 if there are none."""
    return sum(1 for _ in complete_lines(folder)) if (folder / RESULTS).exists() else 0


def finished_rows(folder: Path, plan: Plan, expected: Callable[[Row], Mapping[str, Any]]) -> int:
    """How many rows are in finished chunks; what was written after them is cut off.

    Raises OptionError for a line that is not what `expected` says, or whose picture is gone.
    """
    count, kept, size = count_lines(folder), 0, 0
    if not count:
        (folder / RESULTS).unlink(missing_ok=True)
        return 0
    for chunk in plan.chunks():
        if kept + len(chunk) > count:
            break
        kept += len(chunk)
    rows = (row for chunk in plan.chunks() for row in chunk)
    lines = zip(complete_lines(folder), read_lines(folder), rows, strict=False)
    for number, (content, line, row) in enumerate(lines):
        if number == kept:
            break
        size += len(content) + 1
        wrong = [name for name, value in expected(row).items() if line.get(name) != value]
        if wrong or not (folder / row.picture).exists():
            gone = f"its picture {row.picture} is missing"
            raise OptionError(
                f"results {str(folder / RESULTS)!r}, line {number + 1}",
                reason=f"not of this study: {', '.join(wrong)}" if wrong else gone,
                hint="Restore it, or choose another output.",
            )
    os.truncate(folder / RESULTS, size)
    return kept


def _differences(before: Any, now: Any, name: str = "") -> Iterator[str]:
    """What differs between two plans, each as "key: old -> new"."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*dict.fromkeys([*before, *now])]:
            inner = f"{name}.{key}".removeprefix(".")
            yield from _differences(before.get(key), now.get(key), inner)
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for index, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from _differences(old, new, f"{name}[{index}]")
    elif before != now:
        yield f"{name}: {brief(before)} -> {brief(now)}"
