"""Checkpoints: everything needed to resume to the bit, in folders that a kill leaves whole.

`ROOT/step-N/` holds adapter.safetensors (the current weights, a standard file), state.safetensors
(optimiser and EMA) and, written last, manifest.json with the SHA-256 of both. A folder is written
under another name, synced, then renamed, and read back only when every hash is right. A kill at
any moment leaves whole checkpoints and a temporary folder, which the next save removes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from imageprompt.core.atomic_files import remove, write_atomically, write_folder_atomically
from imageprompt.core.errors import OptionError, WriteError
from imageprompt.core.untrusted import is_inside, open_regular, parse_json, read_regular
from imageprompt.core.yaml_file import brief
from imageprompt.training.loop.logging import BUCKETS, log
from imageprompt.training.loop.training_state import ADAPTER, STATE, TrainingState

MANIFEST = "manifest.json"
FORMAT = 1
_MAX_MANIFEST = 2**21  # bytes; it holds the config


# ── folders ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose hashes were right when it was read."""

    folder: Path
    metadata: dict[str, Any]

    @property
    def step(self) -> int:
        return step_of(self.folder)


def step_of(folder: Path) -> int:
    """The step in a checkpoint's name, -1 for other folders."""
    match = re.fullmatch(r"step-(0|[1-9][0-9]{0,14})", folder.name)
    return int(match[1]) if match else -1


def write(
    root: Path, step: int, state: TrainingState, metadata: Mapping[str, Any], keep: int
) -> Path:
    """Write `step-N`, then remove all but the newest `keep`. Raises OptionError."""
    target = root / f"step-{step}"
    _check_root(root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with write_folder_atomically(target) as temporary:
            state.save(temporary)
            files = {name: _digest(temporary / name) for name in (ADAPTER, STATE)}
            # the key "facts" belongs to format 1
            manifest = {"format": FORMAT, "step": step, "facts": dict(metadata), "files": files}
            with write_atomically(temporary / MANIFEST) as path:
                path.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        _prune(root, step, keep)
    except OSError as error:
        raise _write_error(step, root, error) from error
    return target


def newest(root: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest intact checkpoint, and a line for each newer one that is damaged."""
    _check_root(root)
    damaged: list[str] = []
    for folder in _newest_first(root):
        try:
            return read(folder), damaged
        except OptionError as error:
            damaged.append(str(error))
    return None, damaged


def read(folder: Path) -> Checkpoint:
    """A checkpoint, after comparing every file with its hash. Raises OptionError."""
    try:
        if folder.is_symlink():
            raise ValueError("it is a link")
        manifest = parse_json(read_regular(folder / MANIFEST, _MAX_MANIFEST, inside=folder))
        metadata = _checked_metadata(manifest, step_of(folder))
        for name in (ADAPTER, STATE):
            if not _is_unchanged(folder / name, manifest["files"][name]):
                raise ValueError(f"{name} has changed since it was written")
    except (OSError, ValueError) as error:
        why = (
            f"{MANIFEST} or a file it lists cannot be read: {error.strerror}"
            if isinstance(error, OSError)
            else f"cannot be used: {error}"
        )
        raise OptionError(
            f"checkpoint {folder}", reason=why, hint="An older one is used instead."
        ) from error
    return Checkpoint(folder, metadata)


def _checked_metadata(manifest: Any, step: int) -> dict[str, Any]:
    """What a manifest says of a run, every value of its type. Raises ValueError."""
    if not isinstance(manifest, dict) or not isinstance(manifest.get("facts"), dict):
        raise ValueError(f"{MANIFEST} is damaged")
    if type(manifest.get("format")) is not int or manifest["format"] != FORMAT:
        raise ValueError(f"it has the unknown format {brief(manifest.get('format'))}")
    files, metadata = manifest.get("files"), manifest["facts"]
    if (
        type(manifest.get("step")) is not int
        or manifest["step"] != step
        or not isinstance(files, dict)
    ):
        raise ValueError(f"{MANIFEST} is that of another step, or damaged")
    if set(files) != {ADAPTER, STATE}:
        raise ValueError(f"{MANIFEST} must list {ADAPTER} and {STATE}, and no others")
    for name, is_valid in _METADATA.items():
        if name not in metadata or not is_valid(metadata[name]):
            raise ValueError(f"{name} in {MANIFEST} is {brief(metadata.get(name))}")
    return dict(metadata)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(cast(float, value)) < _LARGEST


def _is_window(value: object) -> bool:
    """Two rows of as many numbers as LossWindow has parts."""
    rows = value if isinstance(value, list) else []
    return len(rows) == 2 and all(
        isinstance(row, list) and len(row) == BUCKETS and all(map(_is_number, row)) for row in rows
    )


def _is_loss_scale(value: object) -> bool:
    """GradScaler's state: empty if it is off."""
    if not isinstance(value, dict) or (value and value.keys() != _LOSS_SCALE):
        return False
    counted = all(type(value[key]) is int for key in value if key in _COUNTED)
    return counted and all(_is_number(one) and one >= 0 for one in value.values())


_LARGEST = 1e300
_COUNTED = {"growth_interval", "_growth_tracker"}
_LOSS_SCALE = {"scale", "growth_factor", "backoff_factor", *_COUNTED}
_METADATA: Mapping[str, Callable[[Any], bool]] = {
    "config": lambda value: isinstance(value, dict),
    "data": lambda value: isinstance(value, str),
    "processes": lambda value: _is_count(value) and value > 0,
    "position": _is_count,
    "ema_updates": _is_count,
    "window": _is_window,
    "best": lambda value: value is None or _is_number(value),
    "loss_scale": _is_loss_scale,
}


def _check_root(root: Path) -> None:
    """Raises OptionError for a link out of the output folder: checkpoints are deleted there."""
    if not is_inside(root, root.parent):
        raise OptionError(
            f"checkpoints {str(root)!r}",
            reason="a link that leads out of the output folder",
            hint="Name the other folder as output, or delete the link.",
        )


def steps_in(root: Path) -> list[int]:
    """Steps of the checkpoints in a folder, newest first, intact or not."""
    return [step_of(folder) for folder in _newest_first(root)]


def _newest_first(root: Path) -> Iterator[Path]:
    folders = [path for path in root.glob("step-*") if step_of(path) >= 0]
    yield from sorted(folders, key=step_of, reverse=True)


def _prune(root: Path, step: int, keep: int) -> None:
    """Keep `keep` checkpoints up to `step`; later ones are damaged, or of an abandoned run."""
    earlier = [folder for folder in _newest_first(root) if step_of(folder) < step]
    later = [folder for folder in _newest_first(root) if step_of(folder) > step]
    for folder in (*later, *earlier[keep - 1 :]):
        remove(folder)


def _digest(path: Path) -> dict[str, Any]:
    with open_regular(path, inside=path.parent) as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return {"sha256": digest, "bytes": os.fstat(stream.fileno()).st_size}


def _is_unchanged(path: Path, stated: object) -> bool:
    """Is it the file that a manifest states? One of another size is not hashed."""
    if not isinstance(stated, dict) or path.stat().st_size != stated.get("bytes"):
        return False
    return _digest(path) == stated


def _write_error(step: int, root: Path, error: OSError) -> OptionError:
    steps = steps_in(root)
    left = f"the newest is step {steps[0]}" if steps else "there is none yet"
    why = error.reason if isinstance(error, WriteError) else str(error)
    return OptionError(
        f"checkpoint of step {step} in {root}",
        reason=f"could not be written ({why}); {left}",
        hint="Free some space, then continue with --resume.",
    )


# ── identity ────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class RunIdentity:
    """The settings and the data of a run, as values that JSON can hold.

    The number of `steps` is compared only where the result depends on it. With a constant learning
    rate no step depends on how many follow, so a run that is extended ends exactly as if it had
    been that long from the start. A cosine or linear schedule stretches with `steps`: the steps
    already taken had other learning rates than those of the longer run.
    """

    config: Mapping[str, Any]
    data: str = ""
    """Fingerprint of the training data."""
    allow_changes: bool = field(default=False, compare=False)

    def metadata(self, processes: int) -> dict[str, Any]:
        """Values to store in a checkpoint."""
        return {"config": _as_json(self.config), "data": self.data, "processes": processes}

    def check(self, checkpoint: Checkpoint, processes: int, folder: Path) -> None:
        """Raises OptionError if the checkpoint belongs to another run, unless changes are allowed.

        Allowed changes are logged.
        """
        before, now = checkpoint.metadata, self.metadata(processes)
        changes = _config_changes(before["config"], now["config"], checkpoint.step)
        if before["data"] != now["data"]:
            changes.append("the data")
        if before["processes"] != processes:
            changes.append(f"{before['processes']} processes became {processes}")
        if not changes:
            return
        summary = ", ".join(changes)
        if self.allow_changes:
            log(f"continuing from step {checkpoint.step} with changes: {summary}")
            return
        raise OptionError(
            f"training folder {str(folder)!r}",
            reason=f"contains a run with other settings ({summary})",
            hint="Use the same settings or another output, or continue with --allow-changes.",
        )


def _config_changes(before: Mapping[str, Any], now: Mapping[str, Any], step: int) -> list[str]:
    """One entry for each setting that has changed since the first `step` steps."""
    changes = []
    for name in sorted({*before, *now}):
        if before.get(name) == now.get(name):
            continue
        change = f"{brief(name)[1:-1]}: {brief(before.get(name))} became {brief(now.get(name))}"
        if name == "steps" and name in now and "schedule" in now:
            if now["schedule"] != "constant":
                change += f", which the {now['schedule']} learning rate depends on"
            elif now["steps"] >= step:
                continue
            else:
                change += f", but {step} are done"
        changes.append(change)
    return changes


def _as_json(value: Any) -> Any:
    """The value as it comes back from JSON: tuples become lists, and every key text."""
    if isinstance(value, Mapping):
        return {str(key): _as_json(inner) for key, inner in value.items()}
    return [_as_json(inner) for inner in value] if isinstance(value, list | tuple) else value
