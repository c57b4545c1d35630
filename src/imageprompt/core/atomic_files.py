"""How files are written: readers see the old file or the complete new one, one writer at a time."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from imageprompt.core.errors import OptionError


@contextlib.contextmanager
def write_atomically(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success, sync it and rename it to `path`.

    The temporary file has the suffix of `path`, because some writers choose the format by it. The
    result has the mode of an ordinary new file, whatever mode the writer set. If the block
    raises, the temporary file is removed and `path` is unchanged.
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
    """Flush a folder's directory entries to the disk."""
    _sync(path, os.O_RDONLY)


def _sync(path: Path, flags: int) -> None:
    """Flush `path` (file or folder) to the disk; a folder that cannot be synced is not an error."""
    try:
        descriptor = os.open(path, flags)
    except PermissionError:
        if path.is_dir():  # Windows cannot open folders; the rename itself is still atomic
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
    """`folder` as a path, if it exists or can be created and is writable; creates nothing.

    Raises OptionError.
    """
    path = Path(folder).expanduser()
    reason = ""
    try:
        nearest = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
        if "\0" in str(path):
            reason = "its name contains a NUL character"
        elif not nearest.is_dir():
            reason = f"{nearest} is a file"
        elif not os.access(nearest, os.W_OK | os.X_OK):
            reason = f"{nearest} is not writable"
    except OSError as error:  # a name that is too long, a folder without access
        reason = error.strerror or str(error)
    if reason:
        raise OptionError(
            f"output folder {os.fspath(folder)!r}",
            reason=f"cannot be written to ({reason})",
            hint="Choose another folder.",
        )
    return path


# ── locks ───────────────────────────────────────────────────────────────────────────────────────


class BusyError(OptionError):
    """Another process holds the lock."""


@contextlib.contextmanager
def locked(
    path: Path,
    what: str = "",
    *,
    timeout: float | None = None,
    reason: str = "in use by another process",
    hint: str = "Try again when that process has finished.",
) -> Iterator[None]:
    """Hold the lock file `path` inside the block, which is created; a killed process frees it.

    Waits for another holder up to `timeout` seconds, None for as long as it takes. Raises BusyError
    with the given words, and OptionError if the file is a link, a pipe or a folder: a stranger put
    it there, and opening it could change or wait for something else.
    """
    from filelock import FileLock, Timeout

    _check_lock(path)
    lock = FileLock(path, timeout=-1 if timeout is None else timeout)
    try:
        lock.acquire()
    except Timeout as error:
        raise BusyError(what or f"lock {str(path)!r}", reason=reason, hint=hint) from error
    try:
        yield
    finally:
        lock.release()


def _check_lock(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        raise OptionError(
            f"lock {str(path)!r}",
            reason="a link, pipe, device or folder stands in its place",
            hint="Delete it.",
        )
