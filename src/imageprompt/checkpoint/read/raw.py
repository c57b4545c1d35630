"""Untrusted bytes, read within bounds: files, windows of files, and JSON in them."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from imageprompt.checkpoint.read.stored_tensor import FileStamp
from imageprompt.core.errors import AdapterFileError
from imageprompt.core.hub import no_such_file

MAX_JSON = 32 * 2**20  # bytes
MAX_JSON_ITEMS = 500_000  # brackets and commas, each of which becomes an object: 50,000 tensors
GIVE_AN_ADAPTER = "Give an image-prompt adapter file."
DOWNLOAD_AGAIN = "Download it again."


def refuse(path: Path, reason: str, hint: str = GIVE_AN_ADAPTER) -> NoReturn:
    """Raise the AdapterFileError for a file that is not read."""
    raise AdapterFileError(str(path), reason=reason, hint=hint) from None


class RawFile:
    """`path` opened for reading; with `base` and `size`, only that window of it.

    Raises NotFoundError for a missing file and AdapterFileError for anything that is not a
    readable, regular file (reading a pipe might never end).
    """

    def __init__(self, path: Path, base: int = 0, size: int | None = None) -> None:
        self.path, self.base = path, base
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                refuse(path, "not a regular file but a folder, pipe or device")
            self._handle = path.open("rb", buffering=0)
        except FileNotFoundError:
            raise no_such_file(path) from None
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            reason = getattr(error, "strerror", None) or str(error)
            refuse(path, f"cannot be read ({reason})", "Check its name and permissions.")
        self.stamp = FileStamp.of(os.fstat(self._handle.fileno()))
        self.size = self.stamp.size - base if size is None else size
        if base < 0 or self.size < 0 or base + self.size > self.stamp.size:
            self.__exit__(None, None, None)
            refuse(path, "the file is truncated", "Download or copy it again.")

    def __enter__(self) -> RawFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._handle.close()

    def read_at(self, offset: int, count: int) -> bytes:
        """Exactly `count` bytes from `offset` of the window."""
        if offset < 0 or count < 0 or offset + count > self.size:
            refuse(self.path, "the file is truncated, or points outside itself", DOWNLOAD_AGAIN)
        try:
            self._handle.seek(self.base + offset)
            content = self._handle.read(count)
        except OSError as error:
            refuse(self.path, f"cannot be read ({error.strerror})", "Check the disk.")
        if content is None or len(content) != count:
            refuse(self.path, "the file was truncated while it was read", "Try again.")
        return content


def parse_json_object(path: Path, content: bytes, what: str) -> dict[str, Any]:
    """The JSON object in `content`; `what` names it in errors ("header", "index").

    Raises AdapterFileError if it is too large, not an object, or gives a name twice.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        # json silently lets the last of two equal names win
        names = dict(pairs)
        if len(names) != len(pairs):
            refuse(path, f"the {what} contains the same name twice", DOWNLOAD_AGAIN)
        return names

    items = sum(content.count(mark) for mark in (b"[", b"{", b","))
    if len(content) > MAX_JSON or items > MAX_JSON_ITEMS:
        limit = f"more than {MAX_JSON} bytes or {MAX_JSON_ITEMS} items"
        refuse(path, f"the {what} has {limit}", DOWNLOAD_AGAIN)
    try:
        table = json.loads(content, object_pairs_hook=unique)
    except (ValueError, RecursionError):
        refuse(path, f"the {what} is not valid JSON", DOWNLOAD_AGAIN)
    if not isinstance(table, dict):
        refuse(path, f"the {what} is not a JSON object", DOWNLOAD_AGAIN)
    return table
