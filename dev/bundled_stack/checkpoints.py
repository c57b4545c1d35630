"""Checkpoints of the stages of the build: one file each, written atomically."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from imageprompt.core.atomic_files import write_atomically


def save_atomic(state: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint; a kill at any moment leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(path) as temporary:
        torch.save(dict(state), temporary)


def load_state(path: Path) -> dict[str, Any]:
    """Read a checkpoint of `save_atomic` to the CPU: tensors and plain values only."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict):
        raise TypeError(f"{path}: contains {type(state).__name__}, not a checkpoint")
    return state
