"""Checkpoint folders: written beside, hashed, renamed; read back only when every hash is right.

`ROOT/step-N/` holds adapter.safetensors (the current weights, a standard file), state.safetensors
(optimiser and running average) and, written last, manifest.json with the SHA-256 of both. A kill
at any moment leaves whole checkpoints and at most one `.step-N.tmp`, which the next save removes.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imageprompt.core.atomic_files import sync_folder, write_atomically
from imageprompt.core.errors import OptionError

MANIFEST = "manifest.json"
ADAPTER, STATE = "adapter.safetensors", "state.safetensors"
FORMAT = 1

Writers = Mapping[str, Callable[[Path], None]]
"""File name -> what writes it."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose hashes were right when it was found."""

    folder: Path
    facts: dict[str, Any]

    @property
    def step(self) -> int:
        return step_of(self.folder)


def step_of(folder: Path) -> int:
    """The step in a checkpoint's name, -1 for other folders."""
    found = re.fullmatch(r"step-(\d+)", folder.name)
    return int(found[1]) if found else -1


def write(root: Path, step: int, writers: Writers, facts: Mapping[str, Any], keep: int) -> Path:
    """Write `step-N` and then remove all but the newest `keep`. Raises OptionError."""
    target, temporary = root / f"step-{step}", root / f".step-{step}.tmp"
    try:
        root.mkdir(parents=True, exist_ok=True)
        _clear(root)
        temporary.mkdir()
        for name, writer in writers.items():
            writer(temporary / name)
        files = {name: _told(temporary / name) for name in writers}
        manifest = {"format": FORMAT, "step": step, "facts": dict(facts), "files": files}
        with write_atomically(temporary / MANIFEST) as path:
            path.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        _put(temporary, target)
    except Exception as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise _not_written(step, root, error) from error
    _prune(root, step, keep)
    return target


def newest(root: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint, and a line for each newer one that is damaged."""
    damaged: list[str] = []
    for folder in _newest_first(root):
        try:
            return read(folder), damaged
        except OptionError as error:
            damaged.append(str(error))
    return None, damaged


def read(folder: Path) -> Checkpoint:
    """A checkpoint, once every file is as it was written. Raises OptionError."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        wrong = "" if manifest["format"] == FORMAT else f"it is of format {manifest['format']}"
        for name, told in manifest["files"].items():
            if not wrong and _told(folder / name) != told:
                wrong = f"{name} is not what was written"
        facts = manifest["facts"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        wrong = f"{MANIFEST} or a file that it names cannot be read ({type(error).__name__})"
    if wrong:
        raise OptionError(f"checkpoint {folder}", reason=wrong, hint="An older one is used.")
    return Checkpoint(folder, facts)


def sweep(folder: Path) -> None:
    """Remove what killed writes have left in a folder that this process has locked.

    The names are those of `write_atomically` and of safetensors' own temporary files.
    """
    for pattern in (".*.tmp.safetensors", ".tmp??????"):
        for left in folder.glob(pattern):
            left.unlink(missing_ok=True)


def steps_in(root: Path) -> list[int]:
    """Steps of the checkpoints that are there, newest first, whole or not."""
    return [step_of(folder) for folder in _newest_first(root)]


def _newest_first(root: Path) -> Iterator[Path]:
    folders = [path for path in root.glob("step-*") if step_of(path) >= 0]
    yield from sorted(folders, key=step_of, reverse=True)


def _prune(root: Path, step: int, keep: int) -> None:
    """Newer ones than that of `step` are leftovers: a damaged one, or a run gone another way."""
    earlier = [folder for folder in _newest_first(root) if step_of(folder) < step]
    later = [folder for folder in _newest_first(root) if step_of(folder) > step]
    for folder in (*later, *earlier[keep - 1 :]):
        _remove(folder)


def _put(temporary: Path, target: Path) -> None:
    """Rename; a damaged checkpoint of the same step is moved out of the way first."""
    sync_folder(temporary)
    if target.exists():
        _remove(target)
    temporary.rename(target)
    sync_folder(target.parent)


def _remove(folder: Path) -> None:
    """Under a name that nobody reads first, so that a kill leaves no checkpoint with holes."""
    aside = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    shutil.rmtree(aside)


def _clear(root: Path) -> None:
    for pattern in (".step-*.tmp", ".step-*.old"):
        for left in root.glob(pattern):
            shutil.rmtree(left)


def _told(path: Path) -> dict[str, Any]:
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"sha256": digest, "bytes": path.stat().st_size}


def _not_written(step: int, root: Path, error: Exception) -> Exception:
    """In one line, where it is the system's fault (safetensors has an error type of its own)."""
    from safetensors import SafetensorError

    if not isinstance(error, OSError | SafetensorError):
        return error
    kept = steps_in(root)
    left = f"the newest is that of step {kept[0]}" if kept else "there is none yet"
    return OptionError(
        f"checkpoint of step {step} in {root}",
        reason=f"it could not be written ({' '.join(str(error).split())}); {left}",
        hint="Make room, then go on with --resume.",
    )
