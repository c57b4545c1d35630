"""Interface of a format, and what formats share: canonical parts, names without wrappers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")  # a tensor, a stored tensor or a shape: formats never look inside


@dataclass(frozen=True)
class Parts(Generic[T]):
    """An adapter's tensors in canonical form.

    `projector`: name inside the projector -> tensor; `sites`: `{file id}.to_k_ip.weight`, LoRA and
    so on; `named`: the same under `{layer name}.`, for layouts that call layers by name.
    """

    projector: Mapping[str, T]
    sites: Mapping[str, T]
    metadata: Mapping[str, str] = field(default_factory=dict)
    named: Mapping[str, T] = field(default_factory=dict)


@dataclass(frozen=True)
class ParsedNames(Generic[T]):
    """A file's tensors as a layout understands their names."""

    parts: Parts[T]
    unplaced: tuple[str, ...] = ()
    """Names that do not exist in this layout: a fault of the file."""
    ignored: Mapping[str, T] = field(default_factory=dict)
    """Tensors that belong in the file but not to the adapter, such as the frozen base."""
    copies: tuple[tuple[T, T], ...] = ()
    """Tensors that two names of the file call alike: (the one in `parts`, the other)."""


class Format(Protocol):
    """A file layout, recognised by tensor names alone."""

    @property
    def name(self) -> str: ...

    @property
    def summary(self) -> str: ...

    @property
    def suffixes(self) -> tuple[str, ...]:
        """File name suffixes that its writers use; ours comes first."""

    @property
    def writable(self) -> bool: ...

    @property
    def nested(self) -> bool:
        """Whether a pickle has a dictionary for each part (the name up to its first dot)."""

    def claims(self, names: Iterable[str]) -> bool:
        """Whether these flat tensor names look like this layout, however much is missing."""

    def read(self, tensors: Mapping[str, T]) -> ParsedNames[T]:
        """The canonical parts, and what is left."""

    def write(self, parts: Parts[T]) -> dict[str, T]:
        """Flat tensor names of this layout. Raises OptionError for what it cannot hold."""


# ── names ───────────────────────────────────────────────────────────────────────────────────────

# DDP, torch.compile and FSDP add a segment; people save {"model": ...}, {"state_dict": ...}, or a
# part inside a part of the same name. None of it changes what a tensor is.

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
