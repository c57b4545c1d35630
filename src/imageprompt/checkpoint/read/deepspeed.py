"""DeepSpeed's checkpoint folders: whole weights in one file, or partitions that must be merged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imageprompt.checkpoint.read.refusals import refuse
from imageprompt.checkpoint.read.stored_tensor import StoredTensor

PARTITIONED = "DeepSpeed's ZeRO-3 keeps the weights in partitions, one for each process"
MERGE = (
    "Run `python zero_to_fp32.py . merged` in the checkpoint's folder (DeepSpeed puts the script "
    "there) and give what it writes."
)


def model_file(folder: Path) -> Path | None:
    """The file with all weights in a DeepSpeed folder; None where it is no such folder.

    Raises AdapterFileError for weights that are split over processes.
    """
    if any(folder.glob("zero_pp_rank_*_model_states.pt")):
        refuse(folder, f"it is a folder without whole weights: {PARTITIONED}", MERGE)
    ranks = sorted(folder.glob("mp_rank_*_model_states.pt"))
    if len(ranks) > 1:
        refuse(folder, f"it is a folder with weights split over {len(ranks)} model ranks", MERGE)
    return ranks[0] if ranks else None


def explain_training_state(path: Path, value: Any) -> None:
    """Turn down what lies beside the weights in a training checkpoint: an optimiser's state."""
    if not isinstance(value, dict):
        return
    if "optimizer_state_dict" in value and "module" not in value:
        refuse(path, "it is an optimiser's partition, without names of weights", MERGE)
    if {"state", "param_groups"} <= value.keys():
        refuse(path, "it is the state of an optimiser", "Give the model's file beside it.")


def check_whole(path: Path, value: Any, tensors: Mapping[str, StoredTensor]) -> None:
    """Turn down a partition that was given by itself.

    DeepSpeed leaves an empty tensor for each weight that it split; small ones stay whole.
    """
    empty = sum(not tensor.nbytes for tensor in tensors.values())
    split = isinstance(value, dict) and "param_shapes" in value
    if empty == len(tensors) or (empty and split):
        refuse(path, f"{empty} of its {len(tensors)} tensors are empty: {PARTITIONED}", MERGE)
