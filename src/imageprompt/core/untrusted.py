"""What strangers send: regular files only, one budget for every reader, and strict JSON.

Every reader of a file that somebody else may have written opens it with `open_regular` and spends
from a `Budget` before it reads, unpacks or allocates.
"""

from __future__ import annotations

import errno
import json
import math
import os
import stat
import time
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

# ── limits ──────────────────────────────────────────────────────────────────────────────────────


class LimitError(ValueError):
    """More than a reader's budget allows; the message says what and how much, not in which file."""


class Budget:
    """What reading one thing may cost: `nbytes` read and `unpacked` in all, `items`, `seconds`.

    `depth` is how deeply values may be nested, `seconds` CPU time of this thread. Each method is
    called before the work it stands for, and raises LimitError where that would exceed the budget.
    What is spent counts in the budget `within`, too: that of a folder, for one of its files.
    """

    def __init__(
        self,
        *,
        nbytes: int = 256 * 2**20,
        unpacked: int = 256 * 2**20,
        items: int = 500_000,
        depth: int = 64,
        seconds: float = 30.0,
        within: Budget | None = None,
    ) -> None:
        self.nbytes, self.unpacked, self.items, self.depth = nbytes, unpacked, items, depth
        self.seconds, self.within = seconds, within
        self._left = {"bytes": nbytes, "unpacked bytes": unpacked, "items": items}
        self._limits = dict(self._left)
        self._start = time.thread_time()

    def read(self, count: int) -> None:
        """Before `count` bytes are read."""
        self._spend("bytes", count)

    def unpack(self, count: int) -> None:
        """Before compressed data is unpacked to `count` bytes."""
        self._spend("unpacked bytes", count)

    def add(self, count: int = 1) -> None:
        """Before `count` items (names, entries, opcodes) are made; checks the time too."""
        self._spend("items", count)
        self.check_time()

    @property
    def items_left(self) -> int:
        """How many items `add` still takes."""
        left = self._left["items"]
        return left if self.within is None else min(left, self.within.items_left)

    def allow(self, unpacked: int) -> None:
        """One more file was opened, whose data may unpack to this many bytes besides."""
        self.unpacked += unpacked
        self._limits["unpacked bytes"] += unpacked
        self._left["unpacked bytes"] += unpacked

    def check_depth(self, depth: int) -> None:
        if depth > self.depth:
            raise LimitError(f"nested more than {self.depth} deep")

    def check_time(self) -> None:
        if time.thread_time() - self._start > self.seconds:
            raise LimitError(f"takes more than {self.seconds:g} s to read")

    def _spend(self, kind: str, count: int) -> None:
        if count < 0 or count > self._left[kind]:
            raise LimitError(f"more than {self._limits[kind]} {kind}")
        if self.within is not None:
            self.within._spend(kind, count)
        self._left[kind] -= count


# ── files ───────────────────────────────────────────────────────────────────────────────────────


_HUB_REPOSITORIES = ("models--", "datasets--", "spaces--")


def open_regular(path: str | os.PathLike[str], *, inside: Path | None = None) -> BufferedReader:
    """A regular file, opened for reading; pipes, devices and folders are never opened or waited on.

    With `inside`, a link that leads out of that folder is refused (see `is_inside`). Raises
    OSError, whose `strerror` says what is wrong, and ValueError for a NUL in the path.
    """
    if inside is not None and not is_inside(path, inside):
        raise OSError(errno.EPERM, f"it leads out of {str(inside)!r}", os.fspath(path))
    before = os.stat(path)  # noqa: PTH116 - a pipe or device must not even be opened
    _check_regular(before, path)
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    stream = open(os.open(path, flags | os.O_CLOEXEC), "rb")  # noqa: PTH123, SIM115
    try:
        after = os.fstat(stream.fileno())
        _check_regular(after, path)
        if not os.path.samestat(before, after):
            raise OSError(errno.EAGAIN, "it was replaced while it was opened", os.fspath(path))
    except OSError:
        stream.close()
        raise
    return stream


def read_regular(path: str | os.PathLike[str], limit: int, *, inside: Path | None = None) -> bytes:
    """All bytes of a regular file of at most `limit` bytes. Raises OSError, ValueError."""
    with open_regular(path, inside=inside) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size <= limit:
            content = stream.read(limit + 1)  # files of /proc say that they have 0 bytes
            size = len(content)
        if size > limit:
            reason = f"it has {size} bytes; the limit is {limit}"
            raise OSError(errno.EFBIG, reason, os.fspath(path))
    return content


def is_inside(path: str | os.PathLike[str], folder: Path) -> bool:
    """Does `path`, with every link followed, lie in `folder`?

    The files of a folder in a Hub cache are links to the blobs of the same repository: these count
    as inside.
    """
    real, root = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    return real.is_relative_to(root) or real.parent == _hub_blobs(root)


def _hub_blobs(folder: Path) -> Path | None:
    """The `blobs` beside models--owner--name/snapshots/commit, in which `folder` lies."""
    for commit in (folder, *folder.parents):
        repository = commit.parent.parent
        if commit.parent.name == "snapshots" and repository.name.startswith(_HUB_REPOSITORIES):
            return repository / "blobs"
    return None


def _check_regular(status: os.stat_result, path: str | os.PathLike[str]) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise OSError(errno.EISDIR, "it is a folder, not a file", os.fspath(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is a pipe or device, not a regular file", os.fspath(path))


# ── PNG ─────────────────────────────────────────────────────────────────────────────────────────


def png_chunks(stream: BinaryIO, budget: Budget) -> Iterator[tuple[bytes, int]]:
    """Kind and length of each chunk of a PNG up to its end, the stream standing at the content.

    Spends an item for each; what lengths claim is not checked. Raises LimitError.
    """
    position = 8
    while len(head := _read_at(stream, position, 8)) == 8:
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        budget.add()
        yield kind, length
        if kind == b"IEND":
            return
        position += 12 + length


def _read_at(stream: BinaryIO, position: int, count: int) -> bytes:
    stream.seek(position)
    return stream.read(count)


# ── JSON ────────────────────────────────────────────────────────────────────────────────────────

_MAX_DIGITS = 40
_MAX_FLOAT = 400  # characters


def parse_json(text: str | bytes, budget: Budget | None = None, *, unique: bool = False) -> Any:
    """A JSON value within a budget: no NaN, no infinity, no endless number, no deep nesting.

    `unique` refuses objects that give one name twice. Raises ValueError alone (LimitError is one).
    """
    budget = budget or Budget()
    budget.read(len(text))
    marks = map(text.count, "[{,") if isinstance(text, str) else map(text.count, b"[{,")
    budget.add(sum(marks))
    try:
        value = json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_int=_whole,
            parse_float=_finite,
            object_pairs_hook=_unique if unique else None,
        )
    except RecursionError:
        raise LimitError(f"nested more than {budget.depth} deep") from None
    _check_nesting(value, budget)
    return value


def _check_nesting(value: Any, budget: Budget) -> None:
    level, depth = [value], 0
    while level:
        budget.check_depth(depth)
        inner = [one for one in level if isinstance(one, dict | list)]
        level = [v for one in inner for v in (one.values() if isinstance(one, dict) else one)]
        depth += 1


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number in JSON")


def _whole(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise LimitError(f"a number of {len(digits)} digits")
    return int(digits)


def _finite(digits: str) -> float:
    if len(digits) > _MAX_FLOAT:
        raise LimitError(f"a number of {len(digits)} digits")
    number = float(digits)
    if not math.isfinite(number):
        raise LimitError(f"the number {digits} is too large")
    return number


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("the same name appears twice")
    return found
