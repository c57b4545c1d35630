"""What wrappers and trainers put around and into the tensor names of an adapter, taken off again.

DDP, torch.compile and FSDP add a segment; people save `{"model": ...}`, `{"state_dict": ...}`, or a
part inside a part of the same name. None of it changes what a tensor is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Generic

from imageprompt.checkpoint.formats.contract import T

WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Segments that wrappers leave anywhere in a name."""
OUTER = ("model", "state_dict", "model_state_dict")  # what weights are saved under: first segments
PROCESSOR = "processor"  # the segment between a layer's name and its tensors
DENOISER = "unet"


class Placed(Generic[T]):
    """Tensors by name that keeps every tensor of a name: the first, and its copies."""

    def __init__(self) -> None:
        self.tensors: dict[str, T] = {}
        self.copies: list[tuple[T, T]] = []
        """(the one that is kept, another of the same name)"""

    def put(self, name: str, tensor: T) -> None:
        if name in self.tensors:
            self.copies.append((self.tensors[name], tensor))
        else:
            self.tensors[name] = tensor


def plain_name(name: str) -> str:
    """The name without the segments of wrappers, and without what it was saved under."""
    parts = [part for part in name.split(".") if part not in WRAPPERS]
    while len(parts) > 1 and parts[0] in OUTER:
        del parts[0]
    return ".".join(parts)


def without_wrappers(tensors: Mapping[str, T]) -> Placed[T]:
    """All tensors under their plain names, in the same order."""
    placed: Placed[T] = Placed()
    for name, tensor in tensors.items():
        placed.put(plain_name(name), tensor)
    return placed


def split_parts(name: str, parts: Collection[str]) -> tuple[list[str], str]:
    """The parts that a name starts with, as one may stand inside another, and the rest."""
    segments = name.split(".")
    found: list[str] = []
    end = 0
    for i, segment in enumerate(segments[:-1]):
        if segment in parts:
            found.append(segment)
            end = i + 1
        elif segment not in OUTER:
            break
    return found, ".".join(segments[end:])


def of_a_site(name: str) -> bool:
    """Whether this is a tensor that adapters add to an attention layer."""
    parts = name.split(".")
    added = parts[-2:-1] == ["to_k_ip"] or parts[-2:-1] == ["to_v_ip"]
    return added or any(part.endswith("_lora") for part in parts[-3:-2])


def layer_name(name: str) -> str:
    """`unet.{layer}.processor.{tensor}`, with or without unet and processor: `{layer}.{tensor}`."""
    parts = name.split(".")
    start = 1 if parts[0] == DENOISER else 0
    return ".".join(part for part in parts[start:] if part != PROCESSOR)
