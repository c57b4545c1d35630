"""Checkpoints: everything needed to resume to the bit, in folders that a kill leaves whole.

`ROOT/step-N/` holds adapter.safetensors (the current weights, a standard file), state.safetensors
(optimiser and EMA) and, written last, manifest.json with the SHA-256 of both. A folder is written
under another name, synced, then renamed, and read back only when every hash is right. A kill at
any moment leaves whole checkpoints and a temporary folder, which the next save removes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imageprompt.checkpoint.torch_io import write_file
from imageprompt.core.atomic_files import remove, write_atomically, write_folder_atomically
from imageprompt.core.errors import OptionError, WriteError
from imageprompt.training.loop.ema import Ema
from imageprompt.training.loop.logging import log

MANIFEST = "manifest.json"
ADAPTER, STATE = "adapter.safetensors", "state.safetensors"
FORMAT = 1


@dataclass(frozen=True)
class TrainingState:
    """What a checkpoint saves and restores: the adapter, its parameters, optimiser and EMA."""

    adapter: Any
    parameters: Mapping[str, nn.Parameter]
    optimiser: Any
    ema: Ema | None

    def save(self, folder: Path) -> None:
        """Write the weights and the state into a folder."""
        self.adapter.save(folder / ADAPTER)
        write_file(folder / STATE, self.tensors(), {})

    def tensors(self) -> dict[str, Tensor]:
        """`optimiser.NAME.KEY` and `ema.NAME`, on the CPU."""
        tensors = {
            f"optimiser.{name}.{key}": value
            for name, parameter in self.parameters.items()
            for key, value in self.optimiser.state.get(parameter, {}).items()
        }
        if self.ema is not None:
            tensors |= {f"ema.{name}": value for name, value in self.ema.average.items()}
        return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}

    def restore(self, folder: Path, ema_updates: int) -> None:
        """Restore a checkpoint to the bit. Raises OptionError if it belongs to another adapter."""
        from safetensors.torch import load_file

        weights, state = load_file(folder / ADAPTER), load_file(folder / STATE)
        shapes = {name: tuple(value.shape) for name, value in self.parameters.items()}
        if {name: tuple(value.shape) for name, value in weights.items()} != shapes:
            raise OptionError(
                f"checkpoint {folder}",
                reason="its tensors are not those of the adapter in this config",
                hint="Use the config it was made with, or another output folder.",
            )
        averages = {name for name in state if name.startswith("ema.")}
        if self.ema is not None and len(averages) != len(self.parameters):
            raise OptionError(
                f"checkpoint {folder}",
                reason="has no running average (EMA), but the config asks for one",
                hint="Resume with `ema: 0`, or start in another output folder.",
            )
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(weights[name])
                prefix = f"optimiser.{name}."
                self.optimiser.state[parameter] = {
                    key.removeprefix(prefix): value.to(parameter.device)
                    for key, value in state.items()
                    if key.startswith(prefix)
                }
                if self.ema is not None:
                    self.ema.average[name].copy_(state[f"ema.{name}"])
        if self.ema is not None:
            self.ema.updates = ema_updates


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
    match = re.fullmatch(r"step-(\d+)", folder.name)
    return int(match[1]) if match else -1


def write(
    root: Path, step: int, state: TrainingState, metadata: Mapping[str, Any], keep: int
) -> Path:
    """Write `step-N`, then remove all but the newest `keep`. Raises OptionError."""
    target = root / f"step-{step}"
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
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        wrong = "" if manifest["format"] == FORMAT else f"has unknown format {manifest['format']}"
        for name, digest in manifest["files"].items():
            if not wrong and _digest(folder / name) != digest:
                wrong = f"{name} has changed since it was written"
        metadata = manifest["facts"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        wrong = f"{MANIFEST} or a file it lists cannot be read ({type(error).__name__})"
    if wrong:
        raise OptionError(
            f"checkpoint {folder}", reason=wrong, hint="An older one is used instead."
        )
    return Checkpoint(folder, metadata)


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
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"sha256": digest, "bytes": path.stat().st_size}


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
        change = f"{name}: {before.get(name)!r} became {now.get(name)!r}"
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
