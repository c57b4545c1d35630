"""Doors that do what no door may do: the harness must notice each of them."""

from __future__ import annotations

import ctypes
import os
import pickle
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from imageprompt.core.errors import OptionError

from .attack import Attack, Door, outside


class _Raw(OptionError):
    """An error that escapes nothing."""

    def __str__(self) -> str:
        return "a\x1b[2J"


def _spin(_: Any) -> None:
    while True:
        pass


def _wait(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    (folder / "pipe").open()


def _fill(_: Any) -> None:
    held = bytearray(310 * 2**20)
    held[::4096] = b"x" * (len(held) // 4096)  # every page, and no more work than that


def _bomb(_: Any) -> None:
    held = []
    while True:
        held.append(bytes(2**26))  # asked for, but never touched


def _caught(folder: Path) -> None:
    """Code that catches what stops it is seen all the same."""
    try:
        os.system("true")
    except BaseException:
        return


def _follow(folder: Path) -> None:
    (folder / "link").symlink_to(outside(folder) / "secret.txt")
    (folder / "link").write_text("x")


def _hardlink(folder: Path) -> None:
    os.link(folder / "no", outside(folder) / "empty" / "new")


def _unseen(folder: Path) -> None:
    """A change by code that no audit hook sees."""
    libc = ctypes.pythonapi
    libc.unlink(os.fsencode(outside(folder) / "secret.txt"))


def _segfault(_: Any) -> None:
    ctypes.string_at(0)


def _exit(code: Any) -> Callable[[Any], None]:
    return lambda _: sys.exit(code)


def _fail(error: BaseException) -> Callable[[Any], None]:
    def fail(_: Any) -> None:
        raise error

    return fail


def _many_lines(_: Any) -> None:
    sys.stderr.write("imageprompt: error: one\nand another\n")
    sys.exit(2)


def _write(path: str) -> Callable[[Path], Any]:
    return lambda folder: (folder.parent / path).write_bytes(b"x")


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "KeyError": (_fail(KeyError("x")), "KeyError"),
    "RecursionError": (_fail(RecursionError()), "RecursionError"),
    "MemoryError": (_fail(MemoryError()), "MemoryError"),
    "exit code 3": (_exit(3), "exit code 3"),
    "exit with a text": (_exit("text"), "exit code 'text'"),
    "exit code 2 without a word": (_exit(2), "0 lines"),
    "two lines": (_many_lines, "2 lines"),
    "nothing refused": (lambda _: None, "read, not refused"),
    "other words": (_fail(OptionError("x")), "does not say 'hostile'"),
    "raw in a message": (_fail(_Raw("x")), "message is not printable"),
}  # fmt: skip

READ: dict[str, tuple[Callable[[Path], Any], str]] = {
    "spins": (_spin, "took more than 2 s of CPU"),
    "waits": (_wait, "hung"),
    "needs 310 MB": (_fill, "needed"),
    "needs everything": (_bomb, "MemoryError"),
    "crashes": (_segfault, "SIGSEGV"),
    "os.system": (lambda _: os.system("true"), "code: os.system"),
    "os.system, caught": (_caught, "code: os.system"),
    "subprocess": (lambda _: subprocess.run(["true"], check=False), "code: subprocess"),
    "exec": (lambda _: os.execv("/bin/true", ["true"]), "code: os.exec"),
    "eval": (lambda _: eval("1 + 1"), "code: text executed"),
    "pickle": (lambda _: pickle.loads(b"cos\ngetcwd\n(tR."), "code: pickle.find_class"),
    "connects": (lambda _: socket.create_connection(("127.0.0.1", 9)), "network: "),
    "asks for a name": (lambda _: socket.getaddrinfo("example.org", 80), "network: "),
    "writes outside": (_write("outside/new"), "outside: opened"),
    "writes beside": (_write("../new"), "outside: opened"),
    "follows a link": (_follow, "outside: opened"),
    "removes": (lambda it: (outside(it) / "secret.txt").unlink(), "outside: os.remove"),
    "renames": (lambda it: (outside(it) / "empty").rename(it / "x"), "outside: os.rename"),
    "makes a folder": (lambda it: (outside(it) / "new").mkdir(), "outside: os.mkdir"),
    "cuts": (lambda it: os.truncate(outside(it) / "secret.txt", 0), "outside: os.truncate"),
    "links": (_hardlink, "outside: os.link"),
    "unseen by Python": (_unseen, "outside: secret.txt has changed"),
    "reads outside": (lambda it: (outside(it) / "secret.txt").read_bytes(), "outside: read"),
    "tells the secret": (lambda _: "the text that nobody outside may read", "outside: the secret"),
    "returns raw text": (lambda _: "a\x1b[2J", "returned is not printable"),
    "prints raw text": (lambda _: print("a\x9bJ"), "stdout is not printable"),
    "prints bidi marks": (lambda _: print("a\u202eb", file=sys.stderr), "stderr is not printable"),
    "warns raw": (lambda _: warnings.warn("\x07", stacklevel=1), "warning is not printable"),
    "prints a traceback": (
        lambda _: print("Traceback (most recent call last):", file=sys.stderr), "a traceback",
    ),
}  # fmt: skip

QUARANTINED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "nothing said": (lambda _: None, "read, not quarantined"),
}


def _misdeeds(outcome: Any, of: dict[str, tuple[Callable[[Path], Any], str]]) -> Door:
    """Each misdeed is what an attack makes; the door does it."""

    def attack(name: str, deed: Callable[[Path], Any]) -> Attack:
        says = "hostile" if name == "other words" else ""
        return Attack(name, lambda folder: (deed, folder), says, outcome)

    rows = tuple(attack(name, deed) for name, (deed, _) in of.items())
    return Door(outcome, lambda made, _: made[0](made[1]), rows)


ALL = {"refused": REFUSED, "read": READ, "quarantined": QUARANTINED}
DOORS = tuple(_misdeeds(outcome, of) for outcome, of in ALL.items())
