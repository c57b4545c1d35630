"""Atomic writes: the whole file or the old one, with an ordinary mode, whatever happens."""

from __future__ import annotations

import ast
import errno
import os
import re
import shutil
import stat
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

import forked
from imageprompt.core import atomic_files
from imageprompt.core.atomic_files import (
    BusyError,
    append_line,
    check_folder,
    locked,
    remove,
    sweep,
    write_atomically,
    write_folder_atomically,
)
from imageprompt.core.errors import ImagePromptError, OptionError, WriteError


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


@pytest.mark.parametrize("write", [write_atomically, write_folder_atomically])
def test_control_c_before_the_first_byte_leaves_nothing(
    write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(atomic_files, "_flock", interrupted)
    with pytest.raises(KeyboardInterrupt), write(tmp_path / "a"):
        pass
    assert not list(tmp_path.iterdir())


def test_the_mode_is_that_of_an_ordinary_file(tmp_path: Path) -> None:
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    with write_atomically(tmp_path / "ours") as temporary:
        temporary.unlink()  # writers such as safetensors make the file anew, with mode 0600
        os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE(ordinary.stat().st_mode)


def test_a_new_file_replaces_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with write_atomically(path, new=True) as temporary:
        temporary.write_text("first")
    with pytest.raises(FileExistsError), write_atomically(path, new=True) as temporary:
        temporary.write_text("second")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_file_where_there_are_no_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    test_a_new_file_replaces_nothing(tmp_path)


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    private, link = tmp_path / "private", tmp_path / "link"
    private.write_text("mine")
    link.symlink_to(private)
    with write_atomically(link) as temporary:
        temporary.write_text("ours")
    assert not link.is_symlink()
    assert (private.read_text(), link.read_text()) == ("mine", "ours")


def test_a_folder_takes_the_place_of_what_was_there(tmp_path: Path) -> None:
    private, target = tmp_path / "private", tmp_path / "step-1"
    private.mkdir()
    (private / "file").write_text("mine")
    for before in (lambda: target.symlink_to(private), target.mkdir, target.touch, list):
        before()
        with write_folder_atomically(target) as temporary:
            (temporary / "file").write_text("ours")
        assert not target.is_symlink()
        assert (target / "file").read_text() == "ours"
        remove(target)
    with pytest.raises(KeyError), write_folder_atomically(target) as temporary:
        raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["private"]
    assert (private / "file").read_text() == "mine"


def test_lines_are_appended_whole_and_never_through_a_link(tmp_path: Path) -> None:
    path, link, pipe = tmp_path / "a.jsonl", tmp_path / "link", tmp_path / "pipe"
    append_line(path, "ä")
    append_line(path, "b")
    assert path.read_text(encoding="utf-8") == "ä\nb\n"
    link.symlink_to(path)
    os.mkfifo(pipe)
    for other in (link, pipe):
        with pytest.raises(WriteError, match="stands in its place"):
            append_line(other, "c")
    assert path.read_text(encoding="utf-8") == "ä\nb\n"


# ── errors ──────────────────────────────────────────────────────────────────────────────────────


def test_an_error_names_the_file_the_reason_and_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(WriteError) as caught, write_atomically(tmp_path / "a.bin"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.errno == errno.ENOSPC
    assert isinstance(caught.value, OSError)
    assert isinstance(caught.value, ImagePromptError)
    text = str(caught.value)
    assert text == (
        f"{tmp_path / 'a.bin'}: No space left on device. Free some space, or write to another disk."
    )


def test_an_error_about_another_file_stays_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="other"), write_atomically(tmp_path / "a.bin"):
        (tmp_path / "other").read_text()


@pytest.mark.parametrize("write", [write_atomically, write_folder_atomically])
def test_a_folder_that_goes_away_meanwhile_is_said(write: Any, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    words = "its folder does not exist. Create the folder"
    with pytest.raises(WriteError, match=words), write(folder / "a"):
        shutil.rmtree(folder)
    with pytest.raises(WriteError, match=words), write(folder / "a"):
        pass


def test_a_folder_that_is_read_only_is_said() -> None:
    """By an ordinary user: root may write anywhere."""

    def write(folder: Path, queue: Any) -> None:
        if os.getuid() == 0:
            os.setuid(65534)
        try:
            with write_atomically(folder / "a.bin"):
                pass
        except WriteError as error:
            queue.put(str(error))

    with tempfile.TemporaryDirectory() as name:
        folder, queue = Path(name), forked.CONTEXT.Queue()
        folder.chmod(0o555)
        forked.start(write, folder, queue)
        assert "a.bin: Permission denied. Check its permissions" in queue.get(timeout=120)


def test_a_folder_or_a_name_that_is_too_long_as_target_is_said(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(WriteError, match="Is a directory"), write_atomically(tmp_path / "folder"):
        pass
    with pytest.raises(WriteError, match="shorter"), write_atomically(tmp_path / ("a" * 300)):
        pass
    with write_atomically(tmp_path / ("ä" * 125 + ".bin")) as temporary:  # 254 bytes
        temporary.write_text("whole")
    assert sorted(len(path.name) for path in tmp_path.iterdir()) == [6, 129]


# ── what a kill leaves ──────────────────────────────────────────────────────────────────────────


def write_and_wait(path: Path, ready: Any, end: Any) -> None:
    write = write_folder_atomically if path.suffix == "" else write_atomically
    with write(path) as temporary:
        (temporary / "x" if path.suffix == "" else temporary).write_text("half")
        ready.set()
        end.wait(300)


@pytest.mark.parametrize("name", ["a.bin", "folder"])
def test_a_sweep_removes_what_a_killed_process_left_and_not_what_a_living_one_writes(
    name: str, tmp_path: Path
) -> None:
    ready, end = forked.CONTEXT.Event(), forked.CONTEXT.Event()
    process = forked.start(write_and_wait, tmp_path / name, ready, end)
    assert ready.wait(300)
    sweep(tmp_path)
    with write_atomically(tmp_path / "other") as temporary:
        temporary.touch()
    assert len(list(tmp_path.iterdir())) == 2
    process.kill()
    process.join()
    assert len(list(tmp_path.iterdir())) == 2
    with write_atomically(tmp_path / "other") as temporary:
        temporary.touch()
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_where_there_are_no_locks_only_old_leftovers_are_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic_files, "_flock", lambda *_: None)
    old, recent = tmp_path / ".a.0a1b2c3d.tmp.bin", tmp_path / ".b.0a1b2c3d.tmp"
    for path, age in ((old, 25), (recent, 23)):
        path.touch()
        os.utime(path, (time.time() - 3600 * age,) * 2)
    with write_atomically(tmp_path / "c") as temporary:
        temporary.touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == [recent.name, "c"]


def test_a_sweep_touches_nothing_else(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.write_text("mine")
    names = [".a.tmp", "a.0a1b2c3d.tmp", ".a.0a1b2c3.tmp", ".a.0A1B2C3D.tmp", ".tmpAbC123", ".lock"]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / ".link.0a1b2c3d.tmp").symlink_to(private)
    os.mkfifo(tmp_path / ".pipe.0a1b2c3d.tmp")
    before = sorted(tmp_path.iterdir())
    sweep(tmp_path)
    sweep(tmp_path / "missing")
    assert sorted(tmp_path.iterdir()) == before
    assert private.read_text() == "mine"


def test_a_sweep_between_creating_and_locking_costs_one_more_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, swept = atomic_files._flock, list[Path]()

    def after_sweep(descriptor: int, wait: bool) -> bool | None:
        if wait and not swept:
            swept.extend(tmp_path.iterdir())
            swept[0].unlink()
        return lock(descriptor, wait)

    monkeypatch.setattr(atomic_files, "_flock", after_sweep)
    with write_atomically(tmp_path / "a") as temporary:
        temporary.write_text("whole")
    assert len(swept) == 1
    assert (tmp_path / "a").read_text() == "whole"


def sweep_until(folder: Path, end: Any) -> None:
    while not end.is_set():
        sweep(folder)


def test_writers_are_not_disturbed_by_sweeps(tmp_path: Path) -> None:
    end = forked.CONTEXT.Event()
    process = forked.start(sweep_until, tmp_path, end)
    try:
        for number in range(150):
            with write_atomically(tmp_path / "a.bin") as temporary:
                temporary.write_text(str(number))
            assert (tmp_path / "a.bin").read_text() == str(number)
    finally:
        end.set()
        process.join()


# ── folders ─────────────────────────────────────────────────────────────────────────────────────


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
        end.wait(300)


def test_a_lock_has_one_holder_and_is_freed_by_a_kill(tmp_path: Path) -> None:
    ready, end = forked.CONTEXT.Event(), forked.CONTEXT.Event()
    process = forked.start(hold, tmp_path / ".lock", ready, end)
    assert ready.wait(300)
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


# ── nobody writes otherwise ─────────────────────────────────────────────────────────────────────

WRITERS = {"write_text", "write_bytes", "save_file", "tofile"}
SOURCE = Path(atomic_files.__file__).parents[1]
ALLOWED = {
    "core/atomic_files.py",
    "core/console.py",  # the null device
    "deploy/export/backends/executorch.py",  # a folder of write_folder_atomically
    "checkpoint/torch_io.py",  # write_safetensors and write_pickle, into a given temporary file
    "evaluation/rating/page.py",  # a folder of write_folder_atomically
    "evaluation/study/judging.py",  # cuts a broken last line
    "generation/replay.py",  # a folder of tempfile
    "serve/batch/rows.py",  # into a given temporary file
    "serve/batch/shards.py",  # a folder of write_folder_atomically
    "serve/worker/process.py",  # its own pipes
    "training/data/sources/contract.py",  # a folder of tempfile
    "workflows/restore_ct/run.py",  # where WorkflowResult.save tells it to
    "workflows/tune_style.py",  # scenes that each run draws again
}


def temporaries(tree: ast.AST) -> set[str]:
    """The names that `with write_atomically(...) as NAME` gives."""
    items = [item for node in ast.walk(tree) if isinstance(node, ast.With) for item in node.items]
    return {
        item.optional_vars.id
        for item in items
        if isinstance(item.optional_vars, ast.Name)
        and "write_atomically" in ast.unparse(item.context_expr)
    }


def writes_in_place(call: ast.Call, temporary: set[str]) -> bool:
    """Does it write to a file other than the temporary one of `write_atomically`?"""
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    owner = function.value if isinstance(function, ast.Attribute) else None
    file = (call.args or [None])[0] if owner is None or name in ("save_file", "fdopen") else owner
    if isinstance(file, ast.Name) and file.id in temporary:
        return False
    if name in ("open", "fdopen"):
        values = [one.value for one in call.args[:2] if isinstance(one, ast.Constant)]
        return any(isinstance(mode, str) and re.fullmatch("r?b?[wax+]b?", mode) for mode in values)
    return name in WRITERS


def test_every_file_is_written_atomically() -> None:
    found = set()
    for path in SOURCE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        names = temporaries(tree)
        calls = [one for one in ast.walk(tree) if isinstance(one, ast.Call)]
        if any(writes_in_place(call, names) for call in calls):
            found.add(path.relative_to(SOURCE).as_posix())
    assert found == ALLOWED
