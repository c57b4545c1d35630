"""Atomic writes: the whole file or the old one, with an ordinary mode, whatever happens."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import forked
from imageprompt.core.atomic_files import BusyError, check_folder, locked, write_atomically
from imageprompt.core.errors import OptionError


def test_the_new_file_takes_the_place_of_the_old(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_text("old")
    with write_atomically(path) as temporary:
        assert temporary.parent == path.parent
        assert temporary.suffix == ".png"
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def write_half(path: Path) -> None:
    path.write_text("half")
    raise OSError("disk full")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_text("old")
    with pytest.raises(OSError, match="disk full"), write_atomically(path) as temporary:
        write_half(temporary)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_mode_is_that_of_an_ordinary_file(tmp_path: Path) -> None:
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    with write_atomically(tmp_path / "ours") as temporary:
        temporary.unlink()  # writers such as safetensors make the file anew, with mode 0600
        os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE(ordinary.stat().st_mode)


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_text("old")
    code = (
        "import os, signal, sys\n"
        "from imageprompt.core.atomic_files import write_atomically\n"
        "with write_atomically(sys.argv[1]) as temporary:\n"
        "    temporary.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert path.read_text() == "old"


def test_check_folder_makes_nothing(tmp_path: Path) -> None:
    wanted = tmp_path / "a" / "b"
    assert check_folder(wanted) == wanted
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["file", "file/inside", "nul\0"])
def test_check_folder_refuses_what_can_hold_no_files(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OptionError, match="cannot be written to"):
        check_folder(tmp_path / name)


# ── locks ───────────────────────────────────────────────────────────────────────────────────────


def hold(path: Path, ready: Any, end: Any) -> None:
    with locked(path):
        ready.set()
        end.wait(20)


def test_a_lock_has_one_holder_and_is_freed_by_a_kill(tmp_path: Path) -> None:
    ready, end = forked.CONTEXT.Event(), forked.CONTEXT.Event()
    process = forked.start(hold, tmp_path / ".lock", ready, end)
    assert ready.wait(20)
    words = "folder 'a': two at once. Wait."
    with (
        pytest.raises(BusyError, match=words),
        locked(tmp_path / ".lock", "folder 'a'", timeout=0, reason="two at once", hint="Wait."),
    ):
        pass
    process.kill()
    process.join()
    with locked(tmp_path / ".lock", timeout=0):
        pass


@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe", "folder"])
def test_a_lock_that_is_not_a_regular_file_is_refused_and_untouched(
    kind: str, tmp_path: Path
) -> None:
    private, lock = tmp_path / "private", tmp_path / ".lock"
    private.write_text("mine")
    {
        "link": lambda: lock.symlink_to(private),
        "dangling link": lambda: lock.symlink_to(tmp_path / "new"),
        "pipe": lambda: os.mkfifo(lock),
        "folder": lock.mkdir,
    }[kind]()
    with pytest.raises(OptionError, match="stands in its place"), locked(lock, timeout=0):
        pass
    assert private.read_text() == "mine"
    assert not (tmp_path / "new").exists()
