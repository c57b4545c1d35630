"""Untrusted bytes, read within bounds: files, windows of files, and JSON in them."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, TypeGuard

from imageprompt.checkpoint.read.stored_tensor import FileStamp
from imageprompt.core.errors import AdapterFileError
from imageprompt.core.hub import no_such_file
from imageprompt.core.untrusted import Budget, LimitError, open_regular, parse_json

MAX_JSON = 32 * 2**20  # bytes
MAX_JSON_ITEMS = 500_000  # brackets and commas, each of which becomes an object: 50,000 tensors
MAX_ITEMS = 700_000  # of all files of one path: JSON, records, steps of pickles (35 a tensor)
UNPACKED = 64 * 2**20  # bytes: small files of zeros deflate to nearly nothing
UNPACKED_PER_BYTE = 8  # of a file; weights deflate to two thirds at best
GIVE_AN_ADAPTER = "Give an image-prompt adapter file."
DOWNLOAD_AGAIN = "Download it again."


def refuse(path: Path, reason: str, hint: str = GIVE_AN_ADAPTER) -> NoReturn:
    """Raise the AdapterFileError for a file that is not read."""
    raise AdapterFileError(str(path), reason=reason, hint=hint) from None


def reading_budget() -> Budget:
    """What it may cost to open one path, with all the files that it leads to.

    `nbytes` are those of headers and pickles; reading every tensor once may unpack `unpacked`
    bytes. Each file that is opened allows some more of these, by its size.
    """
    return Budget(items=MAX_ITEMS, unpacked=UNPACKED)


class RawFile:
    """`path` opened for reading; with `base` and `size`, only that window of it.

    Raises NotFoundError for a missing file and AdapterFileError for anything that is not a
    readable, regular file (reading a pipe might never end), or that leads out of the folder
    `inside`. What is read is taken from `budget`; a LimitError inside the `with` becomes an
    AdapterFileError.
    """

    def __init__(
        self,
        path: Path,
        base: int = 0,
        size: int | None = None,
        *,
        inside: Path | None = None,
        budget: Budget | None = None,
    ) -> None:
        self.path, self.base = path, base
        self.budget = budget or reading_budget()
        try:
            self._handle = open_regular(path, inside=inside).detach()
        except FileNotFoundError:
            raise no_such_file(path) from None
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            refuse_unreadable(path, error)
        status = os.fstat(self._handle.fileno())
        self.stamp, self.identity = FileStamp.of(status), (status.st_dev, status.st_ino)
        self.size = self.stamp.size - base if size is None else size
        if base < 0 or self.size < 0 or base + self.size > self.stamp.size:
            self._handle.close()
            refuse(path, "the file is truncated", "Download or copy it again.")
        self.budget.allow(self.size * UNPACKED_PER_BYTE)

    def __enter__(self) -> RawFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._handle.close()
        if isinstance(error, LimitError):
            refuse(self.path, f"it is too large to be opened: {error}")

    def read_at(self, offset: int, count: int) -> bytes:
        """Exactly `count` bytes from `offset` of the window."""
        if offset < 0 or count < 0 or offset + count > self.size:
            refuse(self.path, "the file is truncated, or points outside itself", DOWNLOAD_AGAIN)
        self.budget.read(count)
        try:
            self._handle.seek(self.base + offset)
            content = self._handle.read(count)
        except OSError as error:
            refuse(self.path, f"cannot be read ({error.strerror})", "Check the disk.")
        if content is None or len(content) != count:
            refuse(self.path, "the file was truncated while it was read", "Try again.")
        return content


def is_file_name(name: object) -> TypeGuard[str]:
    """Is it the name of a file in a folder, and no path that may lead elsewhere?"""
    return (
        isinstance(name, str)
        and 0 < len(name) < 256
        and name not in (".", "..")
        and not set(name) & {"/", "\\", ":", "\0"}
    )


def check_files(what: Path, files: Iterable[Path], inside: Path) -> None:
    """Refuse files that lead out of the folder `inside`, or are one file under two names."""
    seen: dict[tuple[int, int], str] = {}
    for file in files:
        with RawFile(file, inside=inside) as raw:
            other = seen.setdefault(raw.identity, file.name)
        if other != file.name:
            refuse(what, f"{other[:80]} and {file.name[:80]} are the same file", DOWNLOAD_AGAIN)


def refuse_unreadable(path: Path, error: OSError | ValueError) -> NoReturn:
    """Refuse a file that cannot be opened, or must not be."""
    reason = getattr(error, "strerror", None) or str(error)
    leads_out = getattr(error, "errno", None) == errno.EPERM
    hint = "Put the file itself there." if leads_out else "Check its name and permissions."
    refuse(path, f"cannot be read ({reason})", hint)


def parse_json_object(
    path: Path, content: bytes, what: str, budget: Budget | None = None
) -> dict[str, Any]:
    """The JSON object in `content`; `what` names it in errors ("header", "index").

    Raises AdapterFileError if it is too large, not an object, or gives a name twice.
    """
    own = Budget(nbytes=MAX_JSON, items=MAX_JSON_ITEMS, within=budget)
    try:
        table = parse_json(content.decode(), own, unique=True)
    except LimitError as error:
        refuse(path, f"the {what} is too large: {error}", DOWNLOAD_AGAIN)
    except (json.JSONDecodeError, UnicodeDecodeError):
        refuse(path, f"the {what} is not valid JSON", DOWNLOAD_AGAIN)
    except ValueError as error:
        refuse(path, f"in the {what}, {error}", DOWNLOAD_AGAIN)
    if not isinstance(table, dict):
        refuse(path, f"the {what} is not a JSON object", DOWNLOAD_AGAIN)
    return table
