"""What every format states, and the canonical parts that all of them meet in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Parts:
    """An adapter's tensors in canonical form.

    `projector`: name inside the projector -> tensor; `sites`: `{id}.to_k_ip.weight` and the like.
    """

    projector: Mapping[str, Tensor]
    sites: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)


class Format(Protocol):
    """A file layout, told by tensor names alone."""

    @property
    def name(self) -> str: ...

    @property
    def summary(self) -> str: ...

    def claims(self, names: Iterable[str]) -> bool:
        """Do these flat tensor names look like this layout?"""

    def read(self, tensors: Mapping[str, Tensor]) -> tuple[Parts, list[str]]:
        """Canonical parts, and the names that this layout has no place for."""

    def write(self, parts: Parts) -> dict[str, Tensor]:
        """Flat tensor names of this layout."""
