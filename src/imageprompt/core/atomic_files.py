"""Atomic file writes: a file is either the old one or the whole new one, never half of it."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from imageprompt.core.errors import OptionError


@contextlib.contextmanager
def write_atomically(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced and renamed onto `path`.

    The temporary file keeps the suffix of `path` (writers that choose a format by it stay right),
    and the result has the mode of an ordinarily created file, whatever the writer made of it. When
    the block raises, the temporary file is removed and `path` is as it was.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.stem}.{secrets.token_hex(4)}.tmp{target.suffix}")
    # Created here, exclusively: the kernel applies the umask, which cannot be read without
    # changing it for the whole process.
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    mode = temporary.stat().st_mode
    try:
        yield temporary
        temporary.chmod(mode)
        _sync(temporary, os.O_RDWR)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


def sync_folder(path: Path) -> None:
    """Flush a folder's list of names to the disk."""
    _sync(path, os.O_RDONLY)


def _sync(path: Path, flags: int) -> None:
    """Flush `path` (file or folder) to the disk; a folder that cannot be synced is not an error."""
    try:
        descriptor = os.open(path, flags)
    except PermissionError:
        if path.is_dir():  # Windows opens no folders; the rename itself is still atomic
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def check_folder(folder: str | os.PathLike[str]) -> Path:
    """`folder`, if files can be written to it, once made. Raises OptionError; makes nothing."""
    path = Path(folder).expanduser()
    reason = ""
    try:
        nearest = next(place for place in (path, *path.absolute().parents) if place.exists())
        if "\0" in str(path):
            reason = "there is a NUL in its name"
        elif not nearest.is_dir():
            reason = f"{nearest} is a file"
        elif not os.access(nearest, os.W_OK | os.X_OK):
            reason = f"{nearest} is not writable"
    except OSError as error:  # a name that is too long, a folder that may not be entered
        reason = error.strerror or str(error)
    if reason:
        raise OptionError(
            f"output folder {os.fspath(folder)!r}",
            reason=f"nothing can be written there ({reason})",
            hint="Choose another one.",
        )
    return path
