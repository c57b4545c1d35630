"""A file, or a window of one, read at given places; every short read is a typed error."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from types import TracebackType

from imageprompt.checkpoint.read.refusals import refuse
from imageprompt.checkpoint.read.stored_tensor import Stamp
from imageprompt.core.hub import no_such_file


class RawFile:
    """`path` opened for reading; with `base` and `size` only that window of it.

    Raises NotFoundError for a missing file and AdapterFileError for what is no readable, ordinary
    file (a pipe would never end).
    """

    def __init__(self, path: Path, base: int = 0, size: int | None = None) -> None:
        self.path, self.base = path, base
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                refuse(path, "it is no file, but a folder, pipe or device")
            self._handle = path.open("rb", buffering=0)
        except FileNotFoundError:
            raise no_such_file(path) from None
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            reason = getattr(error, "strerror", None) or str(error)
            refuse(path, f"it cannot be read ({reason})", "Check its name and permissions.")
        self.stamp = Stamp.of(os.fstat(self._handle.fileno()))
        self.size = self.stamp.size - base if size is None else size
        if base < 0 or self.size < 0 or base + self.size > self.stamp.size:
            self.__exit__(None, None, None)
            refuse(path, "it is cut off", "Download or copy it again.")

    def __enter__(self) -> RawFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._handle.close()

    def at(self, offset: int, count: int) -> bytes:
        """Exactly `count` bytes from `offset` of the window."""
        if offset < 0 or count < 0 or offset + count > self.size:
            refuse(self.path, "it is cut off, or points outside itself", "Download it again.")
        try:
            self._handle.seek(self.base + offset)
            content = self._handle.read(count)
        except OSError as error:
            refuse(self.path, f"it cannot be read ({error.strerror})", "Check the disk.")
        if content is None or len(content) != count:
            refuse(self.path, "it was cut while it was read", "Try again.")
        return content
