"""Weights in folders and shards: which files of a checkpoint or training folder hold them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

from imageprompt.checkpoint.read.file import INDEX_SUFFIX, WEIGHT_SUFFIXES, open_file
from imageprompt.checkpoint.read.raw import MAX_JSON, RawFile, parse_json_object, refuse
from imageprompt.checkpoint.read.stored_tensor import TensorSource
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
_SHARD = re.compile(r".*-\d+-of-\d+\..*")
# Beginnings of files that a checkpoint holds beside its weights
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
# Subfolders of published repositories that hold other models than the adapter
_OTHER_MODELS = ("feature_extractor", "image_encoder", "text_encoder", "tokenizer", "unet", "vae")
_NUMBERED = re.compile(r"(?:checkpoint|step|global_step|epoch)[-_]?(\d{1,12})")
_MAX_DEPTH = 4
_MAX_SHARDS = 1000


def open_folder(folder: Path, depth: int = 0) -> TensorSource:
    """The weights in a folder: a checkpoint, the newest complete one of a training, or one file.

    Raises AdapterFileError that says what the folder is instead, or names the candidates.
    """
    _refuse_other_models(folder)
    found = next((folder / name for name in _FILES if (folder / name).exists()), None)
    if found is None and (folder / ".metadata").exists():
        from imageprompt.checkpoint.read.dcp import read_dcp

        return read_dcp(folder)
    found = found or _deepspeed_file(folder)
    if found is not None:
        return _with_note(_open(found), folder, _others_beside(found))
    inner = _latest(folder) or next((folder / n for n in _INNER if (folder / n).is_dir()), None)
    if inner is not None and depth < _MAX_DEPTH:
        return replace(open_folder(inner, depth + 1), path=folder)
    numbered = _numbered(folder) or _numbered(folder / "checkpoints")
    if numbered and depth < _MAX_DEPTH:
        return _newest(folder, numbered, depth)
    return _only_file(folder)


def read_sharded(index: Path) -> TensorSource:
    """The tensors that `*.index.json` lists, from the files beside it."""
    with RawFile(index) as raw:
        content = raw.read_at(0, min(raw.size, MAX_JSON + 1))
    table = parse_json_object(index, content, "index").get("weight_map")
    if not isinstance(table, dict) or not table:
        refuse(index, "this is JSON without a weight_map", "Give the weights themselves.")
    names = list(dict.fromkeys(table.values()))
    if len(names) > _MAX_SHARDS or not all(_is_file_name(name) for name in names):
        refuse(index, "the index lists shards that are not plain file names beside it")
    missing = [name for name in names if not (index.parent / name).exists()]
    if missing:
        listed = ", ".join(missing[:5])
        what = f"{len(missing)} of its {len(names)} shards are missing ({listed})"
        refuse(index, what, "Download them too.")
    shards = {name: open_file(index.parent / name) for name in names}
    lost = [name for name, shard in table.items() if name not in shards[shard].tensors]
    if lost:
        listed = ", ".join(name[:80] for name in lost[:5])
        refuse(index, f"{len(lost)} tensors are not in the shard that the index names ({listed})")
    kinds = {
        "torch" if shard.container.startswith("torch") else shard.container
        for shard in shards.values()
    }
    return TensorSource(
        index,
        (index, *(index.parent / name for name in names)),
        f"sharded {' and '.join(sorted(kinds))}",
        {name: shards[shard].tensors[name] for name, shard in table.items()},
        {key: text for shard in shards.values() for key, text in shard.metadata.items()},
        tuple(dict.fromkeys(note for shard in shards.values() for note in shard.notes)),
    )


def _is_file_name(name: object) -> bool:
    return (
        isinstance(name, str)
        and 0 < len(name) < 256
        and Path(name).name == name
        and "\0" not in name
    )


def _open(path: Path) -> TensorSource:
    return read_sharded(path) if path.name.endswith(INDEX_SUFFIX) else open_file(path)


def _with_note(source: TensorSource, folder: Path, note: str) -> TensorSource:
    return replace(source, path=folder, notes=(*source.notes, *([note] if note else ())))


def _others_beside(found: Path) -> str:
    """A note on other weights in the folder that could have been meant; "" if there are none."""
    weights = (path for path in _weights(found.parent) if path != found)
    others = [path.name for path in weights if not _SHARD.match(path.name)]
    return f"reading {found.name}, not {', '.join(others[:3])} beside it" if others else ""


def _deepspeed_file(folder: Path) -> Path | None:
    """The file with all weights in a DeepSpeed folder; None for any other folder.

    Raises AdapterFileError for weights that are split over processes.
    """
    partitioned = any(folder.glob("zero_pp_rank_*_model_states.pt"))
    ranks = sorted(folder.glob("mp_rank_*_model_states.pt"))
    if partitioned or len(ranks) > 1:
        from imageprompt.checkpoint.read.refusals import ZERO_3, explain_partitions

        split = f"the weights are split over {len(ranks)} model ranks"
        explain_partitions(folder, ZERO_3 if partitioned else split)
    return ranks[0] if ranks else None


# ── several checkpoints ──────────────────────────────────────────────────────────────────────────


def _newest(folder: Path, numbered: list[Path], depth: int) -> TensorSource:
    """The newest checkpoint that opens; a note says which were skipped."""
    faults: list[ImagePromptError] = []
    for path in numbered:
        try:
            source = open_folder(path, depth + 1)
        except ImagePromptError as error:
            faults.append(error)
            continue
        skipped = f"; {len(faults)} newer are incomplete" if faults else ""
        note = f"reading {path.name}, the newest of {len(numbered)} checkpoints{skipped}"
        return _with_note(source, folder, note)
    raise faults[0]


def _numbered(folder: Path) -> list[Path]:
    """Folders like step-200 and checkpoint-1000, the highest number first."""
    matched = ((_NUMBERED.fullmatch(path.name), path) for path in _entries(folder))
    folders = [(int(match[1]), path) for match, path in matched if match and path.is_dir()]
    return [path for _, path in sorted(folders, reverse=True)]


def _latest(folder: Path) -> Path | None:
    """DeepSpeed's file `latest` contains the name of a folder."""
    try:
        name = _first_bytes(folder / "latest", 256).decode().strip()
    except UnicodeDecodeError:
        return None
    plain = name and Path(name).name == name and "\0" not in name
    return folder / name if plain and (folder / name).is_dir() else None


# ── a folder with one adapter file ───────────────────────────────────────────────────────────────


def _only_file(folder: Path) -> TensorSource:
    """The one weight file in the folder or, if it has none, in its subfolders."""
    weights = _weights(folder) or [
        path
        for inner in _entries(folder)
        if inner.is_dir() and not inner.name.startswith((".", *_OTHER_MODELS))
        for path in _weights(inner)
    ]
    if len(weights) == 1:
        return replace(_open(weights[0]), path=folder)
    if weights:
        listed = ", ".join(str(path.relative_to(folder)) for path in weights[:5])
        listed += ", ..." if len(weights) > 5 else ""
        refuse(folder, f"the folder contains {len(weights)} weight files ({listed})", "Name one.")
    names = ", ".join(path.name for path in _entries(folder)[:5])
    refuse(folder, f"the folder contains no weights ({names or 'empty'})", "Name the file itself.")


def _weights(folder: Path) -> list[Path]:
    return [
        path
        for path in _entries(folder)
        if path.suffix in WEIGHT_SUFFIXES and not path.name.startswith(_STATE) and path.is_file()
    ]


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _refuse_other_models(folder: Path) -> None:
    """Refuse folders whose own files say that they are something else."""
    pipeline = _json_value(folder / "model_index.json", "_class_name")
    if pipeline:
        inside = ", ".join(str(folder / "adapters" / p.name) for p in _weights(folder / "adapters"))
        refuse(
            folder,
            f"this is a whole diffusers pipeline ({pipeline})",
            f"Use it as the base. Adapters in it: {inside}."
            if inside
            else "Use it as the base, and give the adapter's own file here.",
        )
    peft = _json_value(folder / "adapter_config.json", "peft_type")
    if peft:
        refuse(folder, f"this is a PEFT adapter ({peft})", "Load it with peft.")


def _json_value(path: Path, key: str) -> str:
    try:
        value = json.loads(_first_bytes(path, 1 << 20) or b"{}").get(key)
    except (ValueError, AttributeError, RecursionError):
        return ""
    return ascii(str(value))[1:-1][:60] if value else ""


def _first_bytes(path: Path, count: int) -> bytes:
    """The first bytes of a file; none if it is not a regular file (a pipe would never end)."""
    try:
        if not path.is_file():
            return b""
        with path.open("rb") as file:
            return file.read(count)
    except OSError:
        return b""
