"""Weights in several files: an index in JSON says which tensor is in which."""

from __future__ import annotations

from pathlib import Path

from imageprompt.checkpoint.read.json_text import MAX_JSON, parse_table
from imageprompt.checkpoint.read.open import open_file
from imageprompt.checkpoint.read.raw import RawFile
from imageprompt.checkpoint.read.refusals import refuse
from imageprompt.checkpoint.read.stored_tensor import Source

MAX_SHARDS = 1000


def read_sharded(index: Path) -> Source:
    """The tensors that `*.index.json` names, from the files beside it."""
    with RawFile(index) as raw:
        content = raw.at(0, min(raw.size, MAX_JSON + 1))
    table = parse_table(index, content, "index").get("weight_map")
    if not isinstance(table, dict) or not table:
        refuse(index, "it is JSON without a weight_map", "Give the weights themselves.")
    names = list(dict.fromkeys(table.values()))
    if len(names) > MAX_SHARDS or not all(_is_file_name(name) for name in names):
        refuse(index, "it names shards that are no plain file names beside it")
    missing = [name for name in names if not (index.parent / name).exists()]
    if missing:
        listed = ", ".join(missing[:5])
        refuse(
            index,
            f"{len(missing)} of its {len(names)} shards are missing ({listed})",
            "Fetch them.",
        )
    shards = {name: open_file(index.parent / name) for name in names}
    lost = [name for name, shard in table.items() if name not in shards[shard].tensors]
    if lost:
        listed = ", ".join(name[:80] for name in lost[:5])
        refuse(index, f"{len(lost)} tensors are not in the shard that it names ({listed})")
    kinds = {
        "torch" if shard.container.startswith("torch") else shard.container
        for shard in shards.values()
    }
    return Source(
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
