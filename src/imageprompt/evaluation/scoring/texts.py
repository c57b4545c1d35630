"""Text files: whole, or one text a line."""

from __future__ import annotations

import os
from pathlib import Path

from imageprompt.core.errors import OptionError
from imageprompt.core.hub import no_such_file
from imageprompt.core.untrusted import read_regular

MAX_BYTES = 64 * 2**20


def read_text(path: str | os.PathLike[str], limit: int = MAX_BYTES) -> str:
    """A UTF-8 file. Raises NotFoundError, OptionError for one that is too large or no text."""
    file = Path(path).expanduser()
    if not file.exists():
        raise no_such_file(file)
    try:
        return read_regular(file, limit).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise OptionError(f"{path}", reason=f"cannot be read as text: {error}") from error


def read_texts(path: str | os.PathLike[str]) -> list[str]:
    """The lines of a UTF-8 file; an empty line is an empty text.

    Raises what `read_text` raises, and OptionError for an empty file.
    """
    lines = read_text(path).splitlines()
    if not lines:
        raise OptionError(f"{path}", reason="has no text in it", hint="Write one prompt a line.")
    return lines
