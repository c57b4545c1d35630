"""Weights in folders and shards: which files of a checkpoint or training folder hold them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from imageprompt.checkpoint.read.file import INDEX_SUFFIX, WEIGHT_SUFFIXES, open_file
from imageprompt.checkpoint.read.raw import (
    MAX_JSON,
    RawFile,
    check_files,
    is_file_name,
    parse_json_object,
    reading_budget,
    refuse,
)
from imageprompt.checkpoint.read.stored_tensor import TensorSource
from imageprompt.core.errors import ImagePromptError
from imageprompt.core.untrusted import Budget, LimitError, parse_json, read_regular

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
_MAX_CONFIG = 2**20  # bytes
_MAX_TRIES = 100  # newest checkpoints that do not open
_MAX_ENTRIES = 100_000  # of a folder
_FOLDER = 1000  # items of the budget for each folder that may be a checkpoint: a thousand of them


@dataclass(frozen=True)
class _Search:
    """A look into the folder `root`: nothing outside is opened, and its folders cost one budget.

    Links to folders are not followed: they may lead back to where the search came from.
    """

    root: Path
    budget: Budget

    def open(self, path: Path) -> TensorSource:
        if path.name.endswith(INDEX_SUFFIX):
            return read_sharded(path, inside=self.root, budget=self.budget)
        return open_file(path, inside=self.root, budget=self.budget)

    def entries(self, folder: Path) -> list[Path]:
        """What a folder contains, sorted; nothing if it cannot be listed."""
        try:
            with os.scandir(folder) as found:
                names = [entry.name for entry in islice(found, _MAX_ENTRIES + 1)]
        except OSError:
            return []
        if len(names) > _MAX_ENTRIES:
            refuse(folder, f"the folder contains more than {_MAX_ENTRIES} files", "Name one.")
        self.budget.add(len(names))
        return [folder / name for name in sorted(names)]

    def weights(self, folder: Path) -> list[Path]:
        return [
            path
            for path in self.entries(folder)
            if path.suffix in WEIGHT_SUFFIXES
            and not path.name.startswith(_STATE)
            and path.is_file()
        ]

    def start(self, path: Path, limit: int) -> bytes:
        """All bytes of a small file; none if it is larger, no regular file, or leads out."""
        try:
            return read_regular(path, limit, inside=self.root)
        except OSError:
            return b""


def open_folder(folder: Path) -> TensorSource:
    """The weights in a folder: a checkpoint, the newest complete one of a training, or one file.

    Raises AdapterFileError that says what the folder is instead, or names the candidates.
    """
    try:
        return _open_folder(_Search(folder, reading_budget()), folder)
    except LimitError as error:
        refuse(folder, f"the folder is too large to be searched: {error}", "Name the file itself.")


def _open_folder(search: _Search, folder: Path, depth: int = 0) -> TensorSource:
    search.budget.add(_FOLDER)
    _refuse_other_models(search, folder)
    found = next((folder / name for name in _FILES if (folder / name).exists()), None)
    if found is None and (folder / ".metadata").exists():
        from imageprompt.checkpoint.read.dcp import read_dcp

        return read_dcp(folder, inside=search.root, budget=search.budget)
    entries = search.entries(folder)
    found = found or _deepspeed_file(folder, entries)
    if found is not None:
        return _with_note(search.open(found), folder, _others_beside(search, found))
    inner = _latest(search, folder) or next(filter(_is_folder, map(folder.joinpath, _INNER)), None)
    if inner is not None and depth < _MAX_DEPTH:
        return replace(_open_folder(search, inner, depth + 1), path=folder)
    checkpoints = folder / "checkpoints"
    numbered = _numbered(entries) or (
        _numbered(search.entries(checkpoints)) if _is_folder(checkpoints) else []
    )
    if numbered and depth < _MAX_DEPTH:
        return _newest(search, folder, numbered, depth)
    return _only_file(search, folder, entries)


def read_sharded(
    index: Path, *, inside: Path | None = None, budget: Budget | None = None
) -> TensorSource:
    """The tensors that `*.index.json` lists, from the files beside it.

    `inside`: the folder that they must lie in, links followed (that of the index if None).
    """
    folder, budget = index.parent, budget or reading_budget()
    with RawFile(index, inside=inside, budget=budget) as raw:
        content = raw.read_at(0, min(raw.size, MAX_JSON + 1))
    table = parse_json_object(index, content, "index", budget).get("weight_map")
    if not isinstance(table, dict) or not table:
        refuse(index, "this is JSON without a weight_map", "Give the weights themselves.")
    if not all(map(is_file_name, table.values())):
        refuse(index, "the index lists shards that are not plain file names beside it")
    names = list(dict.fromkeys(table.values()))
    if len(names) > _MAX_SHARDS:
        refuse(index, f"the index lists {len(names)} shards; the limit is {_MAX_SHARDS}")
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        listed = ", ".join(name[:80] for name in missing[:5])
        what = f"{len(missing)} of its {len(names)} shards are missing ({listed})"
        refuse(index, what, "Download them too.")
    inside = inside or folder
    check_files(index, [folder / name for name in names], inside)
    shards = {name: open_file(folder / name, inside=inside, budget=budget) for name in names}
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
        (index, *(folder / name for name in names)),
        f"sharded {' and '.join(sorted(kinds))}",
        {name: shards[shard].tensors[name] for name, shard in table.items()},
        {key: text for shard in shards.values() for key, text in shard.metadata.items()},
        tuple(dict.fromkeys(note for shard in shards.values() for note in shard.notes)),
    )


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _with_note(source: TensorSource, folder: Path, note: str) -> TensorSource:
    return replace(source, path=folder, notes=(*source.notes, *([note] if note else ())))


def _others_beside(search: _Search, found: Path) -> str:
    """A note on other weights in the folder that could have been meant; "" if there are none."""
    weights = (path for path in search.weights(found.parent) if path != found)
    others = [path.name for path in weights if not _SHARD.match(path.name)]
    return f"reading {found.name}, not {', '.join(others[:3])} beside it" if others else ""


def _deepspeed_file(folder: Path, entries: list[Path]) -> Path | None:
    """The file with all weights in a DeepSpeed folder; None for any other folder.

    Raises AdapterFileError for weights that are split over processes.
    """
    states = [path for path in entries if path.name.endswith("_model_states.pt")]
    partitioned = any(path.name.startswith("zero_pp_rank_") for path in states)
    ranks = [path for path in states if path.name.startswith("mp_rank_")]
    if partitioned or len(ranks) > 1:
        from imageprompt.checkpoint.read.refusals import ZERO_3, explain_partitions

        split = f"the weights are split over {len(ranks)} model ranks"
        explain_partitions(folder, ZERO_3 if partitioned else split)
    return ranks[0] if ranks else None


# ── several checkpoints ──────────────────────────────────────────────────────────────────────────


def _newest(search: _Search, folder: Path, numbered: list[Path], depth: int) -> TensorSource:
    """The newest checkpoint that opens; a note says which were skipped."""
    faults: list[ImagePromptError] = []
    for path in numbered[:_MAX_TRIES]:
        try:
            source = _open_folder(search, path, depth + 1)
        except ImagePromptError as error:
            faults.append(error)
            search.budget.check_time()
            continue
        skipped = f"; {len(faults)} newer are incomplete" if faults else ""
        note = f"reading {path.name}, the newest of {len(numbered)} checkpoints{skipped}"
        return _with_note(source, folder, note)
    raise faults[0]


def _numbered(entries: list[Path]) -> list[Path]:
    """Folders like step-200 and checkpoint-1000, the highest number first."""
    matched = ((_NUMBERED.fullmatch(path.name), path) for path in entries)
    folders = [(int(match[1]), path) for match, path in matched if match and _is_folder(path)]
    return [path for _, path in sorted(folders, reverse=True)]


def _latest(search: _Search, folder: Path) -> Path | None:
    """DeepSpeed's file `latest` contains the name of a folder."""
    try:
        name = search.start(folder / "latest", 256).decode().strip()
    except UnicodeDecodeError:
        return None
    return folder / name if is_file_name(name) and _is_folder(folder / name) else None


# ── a folder with one adapter file ───────────────────────────────────────────────────────────────


def _only_file(search: _Search, folder: Path, entries: list[Path]) -> TensorSource:
    """The one weight file in the folder or, if it has none, in its subfolders."""
    weights = search.weights(folder) or [
        path
        for inner in entries
        if _is_folder(inner) and not inner.name.startswith((".", *_OTHER_MODELS))
        for path in search.weights(inner)
    ]
    if len(weights) == 1:
        return replace(search.open(weights[0]), path=folder)
    if weights:
        listed = ", ".join(str(path.relative_to(folder)) for path in weights[:5])
        listed += ", ..." if len(weights) > 5 else ""
        refuse(folder, f"the folder contains {len(weights)} weight files ({listed})", "Name one.")
    names = ", ".join(path.name[:80] for path in entries[:5])
    refuse(folder, f"the folder contains no weights ({names or 'empty'})", "Name the file itself.")


def _refuse_other_models(search: _Search, folder: Path) -> None:
    """Refuse folders whose own files say that they are something else."""
    pipeline = _json_value(search, folder / "model_index.json", "_class_name")
    if pipeline:
        adapters = search.weights(folder / "adapters")[:5]
        inside = ", ".join(str(folder / "adapters" / path.name) for path in adapters)
        refuse(
            folder,
            f"this is a whole diffusers pipeline ({pipeline})",
            f"Use it as the base. Adapters in it: {inside}."
            if inside
            else "Use it as the base, and give the adapter's own file here.",
        )
    peft = _json_value(search, folder / "adapter_config.json", "peft_type")
    if peft:
        refuse(folder, f"this is a PEFT adapter ({peft})", "Load it with peft.")


def _json_value(search: _Search, path: Path, key: str) -> str:
    try:
        value = parse_json(search.start(path, _MAX_CONFIG) or b"{}").get(key)
    except (ValueError, AttributeError):
        return ""
    return value[:60] if isinstance(value, str) else ""
