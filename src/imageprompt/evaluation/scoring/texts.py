"""Text files: whole, or one text a line."""

from __future__ import annotations

import os
import re
from itertools import islice
from pathlib import Path

from imageprompt.core.errors import OptionError
from imageprompt.core.hub import no_such_file
from imageprompt.core.untrusted import read_regular

MAX_BYTES = 64 * 2**20
MAX_LINES = 1_000_000
_ENDS = re.compile("\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")
"""Where str.splitlines splits."""


def read_text(path: str | os.PathLike[str], limit: int = MAX_BYTES) -> str:
    """A UTF-8 file. Raises NotFoundError, OptionError for one that is too large or no text."""
    file = Path(path).expanduser()
    if not file.exists():
        raise no_such_file(file)
    try:
        return read_regular(file, limit).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise OptionError(f"{path}", reason=f"cannot be read as text: {error}") from error


def read_texts(path: str | os.PathLike[str], limit: int = MAX_BYTES) -> list[str]:
    """The lines of a UTF-8 file; an empty line is an empty text.

    Raises what `read_text` raises, and OptionError for an empty file or one of too many lines.
    """
    text = read_text(path, limit)
    if sum(1 for _ in islice(_ENDS.finditer(text), MAX_LINES + 1)) > MAX_LINES:
        raise OptionError(f"{path}", reason=f"more than {MAX_LINES:,} lines")
    lines = text.splitlines()
    if not lines:
        raise OptionError(f"{path}", reason="has no text in it", hint="Write one prompt a line.")
    return lines
