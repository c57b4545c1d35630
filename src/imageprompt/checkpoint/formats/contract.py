"""What every format states, and the canonical parts that all of them meet in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")  # a tensor, one that is still in its file, or a shape: formats never look inside


@dataclass(frozen=True)
class Parts(Generic[T]):
    """An adapter's tensors in canonical form.

    `projector`: name inside the projector -> tensor; `sites`: `{file id}.to_k_ip.weight`, LoRA and
    the like; `named`: the same under `{layer name}.` where a layout speaks of layers by name.
    """

    projector: Mapping[str, T]
    sites: Mapping[str, T]
    metadata: Mapping[str, str] = field(default_factory=dict)
    named: Mapping[str, T] = field(default_factory=dict)


@dataclass(frozen=True)
class Read(Generic[T]):
    """What a layout made of a file's tensors."""

    parts: Parts[T]
    unplaced: tuple[str, ...] = ()
    """Names that this layout has no place for: a fault of the file."""
    ignored: Mapping[str, T] = field(default_factory=dict)
    """Tensors beside the adapter that belong there, such as the frozen base, without prefix."""


class Format(Protocol):
    """A file layout, told by tensor names alone."""

    @property
    def name(self) -> str: ...

    @property
    def summary(self) -> str: ...

    @property
    def suffixes(self) -> tuple[str, ...]:
        """File name endings that its writers use; the first is ours."""

    @property
    def writable(self) -> bool: ...

    @property
    def nested(self) -> bool:
        """In a pickle, is each part (the name up to its first dot) a dictionary of its own?"""

    def claims(self, names: Iterable[str]) -> bool:
        """Do these flat tensor names look like this layout, however much is missing?"""

    def read(self, tensors: Mapping[str, T]) -> Read[T]:
        """Canonical parts, and what is left."""

    def write(self, parts: Parts[T]) -> dict[str, T]:
        """Flat tensor names of this layout. Raises OptionError for what it has no place for."""
