"""What a command says about an exception: one line with the reason and the remedy."""

from __future__ import annotations

import os
import traceback

from imageprompt.core.console import note
from imageprompt.core.errors import MAX_PART, REMEDIES, ImagePromptError, printable, shortened

TRACEBACK = "IMAGEPROMPT_TRACEBACK"
"""The environment variable that shows where an error was raised."""

_NO_MEMORY = ("can't allocate memory", "cannot allocate memory", "out of memory", "bad_alloc")
"""How torch and the libraries below say it."""


def explain(error: BaseException) -> str:
    """The line for an error; before it the traceback, if `traceback_wanted`."""
    if traceback_wanted():
        for line in "".join(traceback.format_exception(error)).splitlines():
            note(line)
    return shortened(printable(" ".join(_explain(error).split())), 4 * MAX_PART)


def traceback_wanted() -> bool:
    return os.environ.get(TRACEBACK, "") not in ("", "0")


def _explain(error: BaseException) -> str:
    text = _text(error)
    if isinstance(error, ImagePromptError):
        return text
    if isinstance(error, MemoryError) or any(words in text.lower() for words in _NO_MEMORY):
        return "not enough memory. Use fewer or smaller pictures at once (--batch-size, --size)."
    if isinstance(error, RecursionError):
        return "the input is nested too deeply. Check where the file comes from."
    if isinstance(error, OSError):
        return _system_error(error)
    if isinstance(error, UnicodeError):
        return f"a text or a name cannot be written or read as Unicode ({text})."
    if isinstance(error, ModuleNotFoundError):
        return f"the package {error.name} is not installed. Reinstall imageprompt with pip."
    if "home directory" in text:  # RuntimeError of pathlib
        return "no home folder is known here for a path with ~. Write the path in full."
    if "null byte" in text or "null character" in text:
        return "a path contains a NUL character. Check the path."
    return _bug(error)


def _text(error: BaseException) -> str:
    try:
        return shortened(str(error), 4 * MAX_PART)
    except Exception:  # the error's own fault
        return "it has no message"


def _system_error(error: OSError) -> str:
    """The system's words, and what they are about."""
    reason = error.strerror or str(error) or type(error).__name__
    if isinstance(error.filename, str | bytes):
        what = f"{os.fsdecode(error.filename)!r}: "
    else:
        what = "" if _folder_exists() else "the current folder no longer exists: "
    remedy = REMEDIES.get(error.errno or 0, "")
    return f"{what}{reason.rstrip('.')}. {remedy}".rstrip()


def _folder_exists() -> bool:
    try:
        os.getcwd()  # noqa: PTH109 - Path.cwd() is the same call
    except OSError:
        return False
    return True


def _bug(error: BaseException) -> str:
    place = ""
    if frames := traceback.extract_tb(error.__traceback__):
        place = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})"  # noqa: PTH119
    return (
        f"unexpected {type(error).__name__}: {_text(error)}{place}. This is a bug: please report"
        f" it with what the same command prints with {TRACEBACK}=1."
    )
