"""Folders: which file of a checkpoint or training folder holds the weights."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

from imageprompt.checkpoint.read.dcp import METADATA, read_dcp
from imageprompt.checkpoint.read.deepspeed import model_file
from imageprompt.checkpoint.read.open import INDEX_SUFFIX, open_file
from imageprompt.checkpoint.read.refusals import refuse
from imageprompt.checkpoint.read.sharded import read_sharded
from imageprompt.checkpoint.read.stored_tensor import Source
from imageprompt.core.errors import ImagePromptError

# In this order: this project's own, accelerate's (new and old), diffusers'
_FILES = (
    "adapter.safetensors",
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "pytorch_model_fsdp.bin",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
)
_INNER = ("pytorch_model", "pytorch_model_fsdp_0")  # accelerate with DeepSpeed, with FSDP
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_SHARD = re.compile(r".*-\d+-of-\d+\..*")
# What lies beside the weights of a checkpoint and is none
_STATE = (
    "optim",
    "random_states",
    "rng_state",
    "sampler",
    "scaler",
    "scheduler",
    "state",
    "training_args",
)
_NUMBERED = re.compile(r"(?:checkpoint|step|global_step|epoch)[-_]?(\d{1,12})")
_MAX_DEPTH = 4


def open_folder(folder: Path, depth: int = 0) -> Source:
    """The weights in a folder: a checkpoint, or the newest whole one of a training folder.

    Raises AdapterFileError that says what the folder is instead.
    """
    _explain(folder)
    found = next((folder / name for name in _FILES if (folder / name).exists()), None)
    if found is None and (folder / METADATA).exists():
        return read_dcp(folder)
    found = found or model_file(folder)
    if found is not None:
        return _with_note(_open(found), folder, _beside(found))
    inner = _latest(folder) or next((folder / n for n in _INNER if (folder / n).is_dir()), None)
    if inner is not None and depth < _MAX_DEPTH:
        return replace(open_folder(inner, depth + 1), path=folder)
    numbered = _numbered(folder) or _numbered(folder / "checkpoints")
    if numbered and depth < _MAX_DEPTH:
        return _newest(folder, numbered, depth)
    return _only_file(folder)


def _open(path: Path) -> Source:
    return read_sharded(path) if path.name.endswith(INDEX_SUFFIX) else open_file(path)


def _with_note(source: Source, folder: Path, note: str) -> Source:
    return replace(source, path=folder, notes=(*source.notes, *([note] if note else ())))


def _beside(found: Path) -> str:
    """Other weights in the folder that could have been meant."""
    weights = (path for path in _weights(found.parent) if path != found)
    others = [path.name for path in weights if not _SHARD.match(path.name)]
    return f"{found.name} is read, not {', '.join(others[:3])} beside it" if others else ""


def _newest(folder: Path, numbered: list[Path], depth: int) -> Source:
    """The newest checkpoint that opens; what was passed over is said."""
    faults: list[ImagePromptError] = []
    for path in numbered:
        try:
            source = open_folder(path, depth + 1)
        except ImagePromptError as error:
            faults.append(error)
            continue
        passed = f", {len(faults)} newer ones are not whole" if faults else ""
        note = f"{path.name} is read, the newest of {len(numbered)} checkpoints{passed}"
        return _with_note(source, folder, note)
    raise faults[0]


def _numbered(folder: Path) -> list[Path]:
    """Folders like step-200 and checkpoint-1000, the highest number first."""
    found = [(match, path) for path in _inside(folder) if (match := _NUMBERED.fullmatch(path.name))]
    folders = [(int(match[1]), path) for match, path in found if path.is_dir()]
    return [path for _, path in sorted(folders, reverse=True)]


def _latest(folder: Path) -> Path | None:
    """DeepSpeed's file `latest` holds the name of a folder."""
    try:
        name = _beginning(folder / "latest", 256).decode().strip()
    except UnicodeDecodeError:
        return None
    plain = name and Path(name).name == name and "\0" not in name
    return folder / name if plain and (folder / name).is_dir() else None


def _only_file(folder: Path) -> Source:
    weights = _weights(folder)
    if len(weights) == 1:
        return _with_note(_open(weights[0]), folder, f"{weights[0].name} is read")
    names = ", ".join(path.name for path in (weights or list(_inside(folder)))[:5])
    if weights:
        refuse(folder, f"it is a folder with {len(weights)} weight files ({names})", "Give one.")
    refuse(folder, f"it is a folder without weights ({names or 'empty'})", "Give the file itself.")


def _weights(folder: Path) -> list[Path]:
    named = (p for p in _inside(folder) if p.suffix in _SUFFIXES and not p.name.startswith(_STATE))
    return [path for path in named if path.is_file()]


def _inside(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _explain(folder: Path) -> None:
    """Turn down folders that say themselves that they are something else."""
    pipeline = _json_value(folder / "model_index.json", "_class_name")
    if pipeline:
        refuse(
            folder,
            f"it is a folder with a whole diffusers pipeline ({pipeline})",
            "Give it as the base, and the adapter's own file here.",
        )
    peft = _json_value(folder / "adapter_config.json", "peft_type")
    if peft:
        refuse(folder, f"it is a folder with a PEFT adapter ({peft})", "Load it with peft.")


def _json_value(path: Path, key: str) -> str:
    try:
        value = json.loads(_beginning(path, 1 << 20) or b"{}").get(key)
    except (ValueError, AttributeError, RecursionError):
        return ""
    return ascii(value)[:60] if value else ""


def _beginning(path: Path, count: int) -> bytes:
    """The first bytes of a file; none where there is no such file (a pipe would never end)."""
    try:
        if not path.is_file():
            return b""
        with path.open("rb") as file:
            return file.read(count)
    except OSError:
        return b""
