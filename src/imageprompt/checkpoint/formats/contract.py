"""Interface of a format, and the canonical parts that all formats share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
