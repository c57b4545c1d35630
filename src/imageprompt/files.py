"""Atomic file writes: a file is either the old one or the whole new one, never half of it."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from imageprompt.errors import OptionError


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
    _sync(target.parent, os.O_RDONLY)


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


def ready_folder(folder: str | os.PathLike[str]) -> Path:
    """`folder`, made if need be. Raises OptionError where nothing can be written."""
    path = Path(folder).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OptionError(
            f"output folder {os.fspath(folder)!r}",
            rule=f"it cannot be made ({reason})",
            remedy="Choose another one.",
        ) from error
    if not os.access(path, os.W_OK):
        raise OptionError(
            f"output folder {os.fspath(folder)!r}",
            rule="it cannot be written to",
            remedy="Choose another one.",
        )
    return path
