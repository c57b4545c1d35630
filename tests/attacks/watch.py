"""What a child process must not do while it handles an attack: run, fetch, or leave its folder."""

from __future__ import annotations

import os
import struct
import sys
import zlib
from pathlib import Path
from types import CodeType
from typing import Any

from .attack import SECRET

RUNS = {
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "os.kill", "os.killpg",
    "subprocess.Popen", "pty.spawn", "webbrowser.open", "pickle.find_class", "ctypes.dlopen",
}  # fmt: skip
FETCHES = {
    "socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.bind",
    "urllib.Request", "http.client.connect", "ftplib.connect", "smtplib.connect",
}  # fmt: skip
CHANGES = {
    "os.remove": ((0, 1),), "os.rmdir": ((0, 1),), "os.mkdir": ((0, 2),), "os.link": ((1, 3),),
    "os.rename": ((0, 2), (1, 3)), "os.symlink": ((1, 2),), "os.truncate": ((0, None),),
    "os.chmod": ((0, 2),), "os.chown": ((0, 3),), "os.utime": ((0, 3),), "shutil.rmtree": ((0, 1),),
    "os.mkfifo": ((0, 2),), "os.mknod": ((0, 3),),
}  # fmt: skip
"""Events -> which of their arguments are paths that are changed, and the folders these are in."""

_HARMLESS = (
    "/dev/null",
    "/dev/full",
    "/dev/tty",
    "/dev/shm/torch_",
    "/dev/shm/psm_",  # of multiprocessing; tests may have their files there
    "/dev/shm/sem.",
    "/proc/x",
    "/proc/.x",
    "/proc/self/",
)
"""Places where nothing is written that stays; nobody can make a file in /proc."""

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
OWN_CODE = (
    "dataclasses.py", "collections/__init__.py", "typing.py", "typing_extensions.py",
    "imageprompt/core/schema.py", "typing_inspection/typing_objects.py",
)  # fmt: skip
"""Files that write code, or evaluate annotations, of modules."""


class Canary(BaseException):
    """What was attempted; it is not carried out."""


class Watch:
    """An audit hook that records and stops what must not happen, while `on`."""

    def __init__(self) -> None:
        self.on = False
        self.found: list[str] = []
        sys.addaudithook(self._hook)

    def guard(self, allowed: tuple[Path, ...], outside: Path) -> None:
        """From now on, writing is allowed in `allowed`, reading everywhere but in `outside`."""
        self.allowed = tuple(map(os.path.realpath, allowed))
        self.outside = os.path.realpath(outside)
        self.found.clear()
        self._before = planted(outside)

    def problems(self) -> list[str]:
        """What was attempted, and what has changed outside."""
        now = planted(Path(self.outside))
        changed = sorted(set(now.items()) ^ set(self._before.items()))
        names = dict.fromkeys(name for name, _ in changed)
        return [*dict.fromkeys(self.found), *(f"outside: {name} has changed" for name in names)]

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open":
            self._opened(*arguments)
        elif event == "exec":
            self._executed(arguments[0])
        elif event in CHANGES:
            for path, folder in CHANGES[event]:
                base = arguments[folder] if folder is not None and folder < len(arguments) else -1
                self._changed(event, arguments[path], base)
        elif event in RUNS:
            self._stop(f"code: {event}{_shown(arguments)}")
        elif event in FETCHES:
            self._stop(f"network: {event}{_shown(arguments[1:])}")

    def _opened(self, path: Any, mode: str | None, flags: int) -> None:
        if isinstance(path, int):
            return
        if flags & WRITES:
            real = _real(path, follow=not flags & (os.O_EXCL | os.O_NOFOLLOW))
            if not self._may_change(real):
                self._stop(f"outside: opened {real} for writing")
        elif _within(_real(path), self.outside):
            self._stop(f"outside: read {_real(path)}")

    def _executed(self, code: CodeType) -> None:
        name = code.co_filename
        if not name.startswith("<") or name.startswith("<frozen "):
            return
        caller = sys._getframe(2).f_code.co_filename
        if not caller.endswith(OWN_CODE):
            self._stop(f"code: text executed by {caller}")

    def _changed(self, event: str, path: Any, folder: int) -> None:
        if isinstance(path, int):
            return
        place = Path(f"/proc/self/fd/{folder}").readlink() if (folder or -1) >= 0 else Path()
        real = _real(place / os.fsdecode(path), follow=event == "os.truncate")
        if not self._may_change(real):
            self._stop(f"outside: {event} {real}")

    def _may_change(self, real: str) -> bool:
        if real.startswith(_HARMLESS):
            return True
        inside = any(_within(real, folder) for folder in self.allowed)
        return inside and not _within(real, self.outside)

    def _stop(self, what: str) -> None:
        self.found.append(what)
        raise Canary(what)


def plant(folder: Path) -> Path:
    """Make the folder that no attack may read or change."""
    folder.mkdir()
    (folder / "empty").mkdir()
    (folder / "secret.txt").write_text(SECRET)
    (folder / "secret.json").write_text(f'{{"secret": "{SECRET}"}}')
    (folder / "secret.png").write_bytes(_png())
    return folder


def planted(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time and content of everything in that folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        content = path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(folder))] = (path.lstat().st_mtime_ns, content)
    return found


def _png(side: int = 16) -> bytes:
    """A grey square."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    pixels = zlib.compress((b"\0" + b"\x80" * side) * side)
    parts = ((b"IHDR", head), (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def _real(path: Any, follow: bool = True) -> str:
    text = os.fsdecode(path)
    if follow:
        return os.path.realpath(text)
    head, _, name = text.rpartition(os.sep)
    return f"{os.path.realpath(head or os.curdir)}{os.sep}{name}"


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + os.sep)


def _shown(arguments: tuple[Any, ...]) -> str:
    return repr(arguments)[:200]
