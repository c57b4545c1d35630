"""How files are written: readers see the old file or the complete new one, one writer at a time.

A writer fills a temporary file or folder beside its target and renames it when it is complete. It
holds a lock on the temporary one meanwhile, which the system frees when the process ends, however
it ends. So every writer can tell what a killed process left in a folder from what a living one is
writing there, and removes the former (`sweep`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from imageprompt.core.errors import REMEDIES, OptionError, WriteError

if sys.platform != "win32":
    import fcntl

_NOT_FOLLOWED = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
"""Flags for opening neither what a link leads to nor, endlessly, a pipe."""
_NOT_PLAIN = "a link, pipe, device or folder stands in its place"

# ── writing ─────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def write_atomically(
    path: str | os.PathLike[str], *, new: bool = False, durable: bool = True
) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success, sync it and rename it to `path`.

    The temporary file has the suffix of `path`, because some writers choose the format by it. The
    result has the mode of an ordinary new file, whatever mode the writer set. A link at `path` is
    replaced, and what it leads to stays as it is. `new` replaces nothing: FileExistsError if `path`
    exists by then. Without `durable` nothing is synced or swept: for thousands of small files.

    If the block raises, the temporary file is removed and `path` is unchanged. The system's errors
    about the file become WriteError.
    """
    target = Path(path)
    if durable:
        sweep(target.parent)
    with _write_errors(target), _temporary(target) as temporary:
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)
        if durable:
            _sync(temporary, os.O_RDWR)
        _publish(temporary, target, new)
        if durable:
            sync_folder(target.parent)


@contextlib.contextmanager
def write_folder_atomically(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success, sync it and rename it to `path`.

    Its files are synced by those who write them. What has the name already is removed first: a
    folder, a file or a link, not what the link leads to. If the block raises, the temporary folder
    is removed. The system's errors become WriteError.
    """
    target = Path(path)
    sweep(target.parent)
    with _write_errors(target), _temporary(target, folder=True) as temporary:
        yield temporary
        sync_folder(temporary)
        if os.path.lexists(target):
            remove(target)
        temporary.rename(target)
        sync_folder(target.parent)


def append_line(path: Path, line: str) -> None:
    """Append a line to a file, or nothing. Raises WriteError, for a link too."""
    content = f"{line}\n".encode()
    with _write_errors(path), os.fdopen(_open_to_append(path), "ab", buffering=0) as stream:
        size = os.fstat(stream.fileno()).st_size
        try:
            while content:
                content = content[stream.write(content) :]
        except OSError:
            stream.truncate(size)
            raise


def _open_to_append(path: Path) -> int:
    if not _is_plain(path):
        raise OSError(errno.EINVAL, _NOT_PLAIN, str(path))
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)
    return os.open(path, flags | _NOT_FOLLOWED, 0o666)


def _is_plain(path: Path) -> bool:
    """Is it a regular file, or does nothing have the name?"""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return True


def remove(path: Path) -> None:
    """Delete a file, a link or a whole folder; a kill leaves no half folder of that name."""
    if path.is_symlink() or not path.is_dir():
        path.unlink()
        return
    aside = _temporary_path(path)
    path.rename(aside)
    shutil.rmtree(aside)


def sync_folder(path: Path) -> None:
    """Flush a folder's directory entries to the disk."""
    _sync(path, os.O_RDONLY)


def sync_file(path: Path) -> None:
    """Flush a file to the disk that another library has written."""
    _sync(path, os.O_RDWR)


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


def _publish(temporary: Path, target: Path, new: bool) -> None:
    """Give the complete file its name."""
    if not new:
        temporary.replace(target)
        return
    try:
        os.link(temporary, target)  # unlike a rename, it fails if the name is taken
    except FileExistsError:
        raise
    except OSError:  # no hard links on this file system: claim the name, then replace the claim
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        temporary.replace(target)
    else:
        temporary.unlink()


# ── temporary files ─────────────────────────────────────────────────────────────────────────────

_TEMPORARY = re.compile(r"\..*\.[0-9a-f]{8}\.tmp(\.[^.]*)?", re.DOTALL)
_MAX_STEM = 200  # bytes of the target's name in that of the temporary file: together at most 255
_STALE = 24 * 3600.0
"""Seconds after its last change when a temporary file counts as left, where there are no locks."""


def sweep(folder: Path) -> None:
    """Remove the temporary files and folders in `folder` whose writers have ended."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if _TEMPORARY.fullmatch(entry.name):
                with contextlib.suppress(OSError):
                    _remove_leftover(Path(entry))


def _remove_leftover(path: Path) -> None:
    status = path.lstat()
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        return  # none of ours
    with _lock(path, wait=False) as held:
        if held or (held is None and time.time() - status.st_mtime > _STALE):
            _delete(path)


@contextlib.contextmanager
def _temporary(target: Path, *, folder: bool = False) -> Iterator[Path]:
    """A new temporary file or folder beside `target`, locked; removed if the block raises."""
    with contextlib.ExitStack() as lock:
        temporary = _create(target, folder, lock)
        try:
            yield temporary
        except BaseException:
            with contextlib.suppress(OSError):
                _delete(temporary)
            raise


def _create(target: Path, folder: bool, lock: contextlib.ExitStack) -> Path:
    """Create it exclusively: the kernel applies the umask, which cannot be read without changing
    it for the whole process."""
    while True:
        temporary = _temporary_path(target)
        try:
            if folder:
                temporary.mkdir()
            else:
                os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            with contextlib.suppress(FileNotFoundError):
                lock.enter_context(_lock(temporary, wait=True))
                if temporary.exists():
                    return temporary
        except KeyboardInterrupt:
            with contextlib.suppress(OSError):
                _delete(temporary)
            raise
        lock.close()  # a sweep of another process was faster than the lock


def _temporary_path(target: Path) -> Path:
    return target.with_name(f"{_start(target)}{secrets.token_hex(4)}.tmp{target.suffix}")


def _start(target: Path) -> str:
    """How the names of its temporary files begin."""
    return f".{os.fsencode(target.stem)[:_MAX_STEM].decode(errors='ignore')}."


@contextlib.contextmanager
def _lock(path: Path, *, wait: bool) -> Iterator[bool | None]:
    """Hold the lock of a temporary file or folder in the block. Yields False if its writer holds
    it, None where there are no locks: on Windows, on some network file systems."""
    if sys.platform == "win32":
        yield None
        return
    descriptor = os.open(path, (os.O_RDONLY if path.is_dir() else os.O_RDWR) | _NOT_FOLLOWED)
    try:
        yield _flock(descriptor, wait)
    finally:
        os.close(descriptor)


if sys.platform != "win32":

    def _flock(descriptor: int, wait: bool) -> bool | None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return False if error.errno in (errno.EAGAIN, errno.EACCES) else None
        return True


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


# ── errors ──────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def _write_errors(target: Path) -> Iterator[None]:
    """Name `target` in what the system says about it, and the remedy; its other errors pass."""
    try:
        yield
    except (WriteError, FileExistsError):
        raise
    except OSError as error:
        if not _is_about(error, target):
            raise
        gone = error.errno in (errno.ENOENT, errno.ENOTDIR) and not target.parent.is_dir()
        found = WriteError(
            str(target),
            reason="its folder does not exist" if gone else error.strerror or str(error),
            hint="Create the folder." if gone else REMEDIES.get(error.errno or 0, _REMEDY),
        )
        found.errno = error.errno
        raise found from error


_REMEDY = "Check the disk, or write to another folder."


def _is_about(error: OSError, target: Path) -> bool:
    """Is it about the target or its temporary file, or does it not say?"""
    if not isinstance(error.filename, str | bytes):
        return True
    name = os.fsdecode(error.filename)
    return name == str(target) or name.startswith(str(target.with_name(_start(target))))


# ── folders ─────────────────────────────────────────────────────────────────────────────────────


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

    if not _is_plain(path):
        raise OptionError(f"lock {str(path)!r}", reason=_NOT_PLAIN, hint="Delete it.")
    lock = FileLock(path, timeout=-1 if timeout is None else timeout)
    try:
        lock.acquire()
    except Timeout as error:
        raise BusyError(what or f"lock {str(path)!r}", reason=reason, hint=hint) from error
    try:
        yield
    finally:
        lock.release()
