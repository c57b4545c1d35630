"""One row of the table: an attack, the door it comes in by, and what must come of it.

Each module beside this one whose name begins with `at_` has a constant DOORS. A row is run in a
child process of its own with limits of CPU time and memory; see harness.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Outcome = Literal["refused", "quarantined", "read"]
"""refused: a typed error of one printable line (a command: exit code 2 and that line on stderr).
quarantined: skipped, and said (a warning, a list of problems, or exit code 1 of a command that
checks). read: opened, and harmless."""

SECRET = "the text that nobody outside may read"
"""Content of `outside(folder) / "secret.txt"`; it must not appear in what a row prints."""


def outside(folder: Path) -> Path:
    """The folder beside an attack's own that its door must neither read nor write.

    It holds secret.txt, secret.json, secret.png and an empty folder `empty`.
    """
    return folder.parent / "outside"


@dataclass(frozen=True)
class Attack:
    """`make` writes into an empty folder and returns what its door takes, mostly a path.

    `says` are words that the error, warning or report must contain (any case).
    """

    name: str
    make: Callable[[Path], Any]
    says: str = ""
    outcome: Outcome = "refused"


@dataclass(frozen=True)
class Door:
    """A way in: `use(what the attack made, an empty folder for output)`, and its attacks.

    `use` returns anything printable (its text is searched for `says`; if it is a string, it must
    be lines that a terminal only shows); it may raise. `imports` are the modules that a process has
    loaded before it meets a stranger; what a row loads beyond them is loaded and the row run again,
    so that no import counts as an attack's cost. `errors` are typed errors of an inner room that
    count as refused, beside ImagePromptError.
    """

    name: str
    use: Callable[[Any, Path], object]
    attacks: Sequence[Attack]
    imports: tuple[str, ...] = ()
    errors: tuple[type[Exception], ...] = ()


def content(data: bytes | str, name: str = "file") -> Callable[[Path], Path]:
    """An attack's `make`: one file of these bytes."""

    def make(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return path

    return make


def command(*arguments: str) -> Callable[[Any, Path], object]:
    """A door's `use`: the command with these arguments; {it} is what the attack made, {out} the
    empty folder.

    Raises SystemExit with the exit code where that is not 0; returns what stdout got.
    """

    def use(made: Any, out: Path) -> object:
        import contextlib
        import io

        from imageprompt.cli import main

        text = io.StringIO()
        with contextlib.redirect_stdout(text):
            code = main([one.format(it=made, out=out) for one in arguments])
        if code:
            raise SystemExit(code)
        return text.getvalue()

    return use
