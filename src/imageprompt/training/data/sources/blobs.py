"""Bytes that are not read yet: a file, or a stretch of a shard."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from imageprompt.core.errors import PictureError
from imageprompt.encoding.images.open_image import MAX_FILE_BYTES


class Blob(Protocol):
    """Something that can be read whole, and that changes its stamp when it is replaced."""

    @property
    def label(self) -> str:
        """How an error names it."""

    def stamp(self) -> str:
        """Name, size and time, or whatever else tells that it was replaced; read from no data."""

    def source(self) -> Path | bytes:
        """What a picture is opened from. Raises PictureError."""

    def read(self) -> bytes:
        """All of it. Raises PictureError."""


@dataclass(frozen=True)
class FileBlob:
    """A local file."""

    path: Path

    @property
    def label(self) -> str:
        return f"file {str(self.path)!r}"

    def stamp(self) -> str:
        try:
            status = self.path.stat()
        except (OSError, ValueError):  # ValueError: a NUL in the path
            return f"{self.path}:missing"
        return f"{self.path}:{status.st_size}:{status.st_mtime_ns}"

    def source(self) -> Path:
        return self.path

    def read(self) -> bytes:
        try:
            if not self.path.is_file():
                what = "it is a folder" if self.path.is_dir() else "there is no such file"
                raise PictureError(self.label, reason=what, hint="Check the path.")
            _check_size(self.path.stat().st_size, self.label)
            return self.path.read_bytes()
        except (OSError, ValueError) as error:
            raise _unreadable(self.label, error) from error


@dataclass(frozen=True)
class RangeBlob:
    """`size` bytes from `offset` on in a shard of a filesystem of fsspec."""

    system: Any
    shard: str
    name: str
    offset: int
    size: int
    shard_stamp: str

    @property
    def label(self) -> str:
        return f"member {self.name!r} of {self.shard}"

    def stamp(self) -> str:
        return f"{self.shard}:{self.shard_stamp}:{self.offset}:{self.size}"

    def source(self) -> bytes:
        return self.read()

    def read(self) -> bytes:
        _check_size(self.size, self.label)
        try:
            data: bytes = self.system.cat_file(
                self.shard, start=self.offset, end=self.offset + self.size
            )
        except Exception as error:  # every protocol has exceptions of its own
            raise _unreadable(self.label, error) from error
        if len(data) != self.size:
            raise PictureError(
                self.label,
                reason=f"{len(data)} of its {self.size} bytes are there",
                hint="Fetch the shard again.",
            )
        return data


def _check_size(size: int, label: str) -> None:
    if size > MAX_FILE_BYTES:
        raise PictureError(
            label, reason=f"it has more than {MAX_FILE_BYTES // 2**20} MiB", hint="Scale it down."
        )


def _unreadable(label: str, error: BaseException) -> PictureError:
    reason = getattr(error, "strerror", None) or error or type(error).__name__
    return PictureError(label, reason=f"it cannot be read ({reason})", hint="Check it.")
