"""Texts from a file, one a line."""

from __future__ import annotations

import os
from pathlib import Path

from imageprompt.core.errors import OptionError
from imageprompt.core.hub import no_such_file
from imageprompt.core.untrusted import read_regular

MAX_BYTES = 64 * 2**20


def read_lines(path: str | os.PathLike[str]) -> list[str]:
    """The lines of a UTF-8 file; an empty one is an empty text.

    Raises NotFoundError, OptionError for a file that is empty, too large or no text.
    """
    file = Path(path).expanduser()
    if not file.exists():
        raise no_such_file(file)
    try:
        lines = read_regular(file, MAX_BYTES).decode("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise OptionError(f"{path}", reason=f"cannot be read as text: {error}") from error
    if not lines:
        raise OptionError(f"{path}", reason="holds no text", hint="Write one prompt a line.")
    return lines
