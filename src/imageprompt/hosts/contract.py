"""What every host states; the protocol of the files beside this one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from imageprompt.spec import HostSpec

if TYPE_CHECKING:
    from torch import nn

    from imageprompt.carrier import Carrier


class Host(Protocol):
    """A base architecture: how to read its sites off a denoiser, and how to enter them."""

    @property
    def name(self) -> str: ...

    @property
    def summary(self) -> str: ...

    @property
    def pipeline_attribute(self) -> str:
        """Where a diffusers pipeline holds such a denoiser."""

    def claims(self, denoiser: object) -> bool:
        """Is this denoiser one of ours?"""

    def describe(self, denoiser: nn.Module) -> HostSpec:
        """The sites of a denoiser (its weights may be on the meta device)."""

    def families(self, text_width: int | None = None) -> Iterator[HostSpec]:
        """The published bases (of one text width, if given), derived from their configs."""

    def text_weights(self, denoiser: nn.Module, name: str) -> tuple[Any, Any]:
        """The to_k and to_v weights [width, text_width] of the site of that name."""

    def install(self, denoiser: nn.Module, spec: HostSpec, carrier: Carrier) -> Any:
        """Let every site read the carrier; returns what `remove` needs. All sites or none."""

    def intact(self, installed: Any) -> bool:
        """Is every site still ours?"""

    def remove(self, installed: Any) -> None:
        """The exact inverse of install."""
