"""The doors that adapter files come in by, and what must be true of every report on one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from forge import whole

Make = Callable[[Path], Any]
MIB = 1 << 20

TORCH = ("torch", "imageprompt.checkpoint.torch_io", "imageprompt.checkpoint.identify.identify")
CONVERTS = ("imageprompt.checkpoint.convert", "imageprompt.checkpoint.read.folders")
REPORTS = ("imageprompt.checkpoint.inspect", "imageprompt.checkpoint.read.folders", "numpy")
"""What a process has loaded that loads, converts or reports."""


def shown(report: Any) -> str:
    """A report as text and as JSON; every line of both is one that a terminal only shows."""
    from imageprompt.core.errors import printable

    lines = str(report).split("\n")
    assert all(line.isprintable() for line in lines), lines
    assert len(lines) < 200
    table = report.as_dict()
    named = ("path", "files", "a", "b", "source", "target", "remedies")  # they must stay usable
    for text in texts({key: value for key, value in table.items() if key not in named}):
        assert text == printable(text), text
        assert len(text) <= 200_000
    return "\n".join([*lines, json.dumps(table)])


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from (text for pair in value.items() for one in pair for text in texts(one))
    elif isinstance(value, list | tuple):
        yield from (text for one in value for text in texts(one))


def inspects(made: Path, out: Path) -> object:
    from imageprompt.checkpoint.inspect import inspect

    return shown(inspect(made, deep=True))


def advises(made: Path, out: Path) -> object:
    """The lines to copy: for a shell and for Python."""
    import ast
    import shlex

    from imageprompt.checkpoint.inspect import inspect

    report = inspect(made)
    for advice in report.remedies:
        if advice.line.startswith("imageprompt "):
            assert str(made) in shlex.split(advice.line)
        if advice.where == "diffusers":
            (call,) = [n for n in ast.walk(ast.parse(advice.line)) if isinstance(n, ast.Call)]
            assert made.name in [ast.literal_eval(one.value) for one in call.keywords]
    return shown(report)


def converts(made: Path, out: Path) -> object:
    from imageprompt.checkpoint.convert import convert

    return shown(convert(made, out / "adapter.safetensors", force=True))


def validates(made: Path, out: Path) -> object:
    from imageprompt.checkpoint.validate import validate

    return shown(validate(made))


def on_base(made: Path, out: Path) -> object:
    """A sound adapter, held against the base in the folder that was made."""
    from imageprompt.checkpoint.validate import validate

    return shown(validate(whole(out / "adapter.safetensors"), base=made))


def on_encoder(made: Path, out: Path) -> object:
    from imageprompt.checkpoint.validate import validate

    return shown(validate(whole(out / "adapter.safetensors"), encoder=made))


def differs(made: Path, out: Path) -> object:
    """Against a sound adapter, from both sides."""
    from imageprompt.checkpoint.diff import diff

    sound = whole(out / "adapter.safetensors")
    return shown(diff(made, sound)) + shown(diff(sound, made))


def loads(made: Path, out: Path) -> object:
    from imageprompt.checkpoint.identify.identify import read_adapter

    return read_adapter(made)[0]


def reads(made: Path, out: Path) -> object:
    from imageprompt.checkpoint.torch_io import read_file

    return f"{len(read_file(made).tensors)} tensors"


def reads_prompt(made: Path, out: Path) -> object:
    from imageprompt.checkpoint.torch_io import read_file

    found = read_file(made, container="safetensors")
    return f"{len(found.tensors)} tensors"
