"""What every host states; the protocols of the files beside this one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from imageprompt.core.spec import HostSpec, Shapes

if TYPE_CHECKING:
    from torch import nn

    from imageprompt.attention.state import AttentionState


class Host(Protocol):
    """A base architecture as files know it: nothing here loads torch, but odd configs."""

    @property
    def name(self) -> str: ...

    @property
    def summary(self) -> str: ...

    @property
    def pipeline_attribute(self) -> str:
        """Where a diffusers pipeline holds such a denoiser."""

    @property
    def attachable(self) -> bool:
        """Can adapters be run on it? Then it is an `AttachableHost`; else it is for files only."""

    def claims(self, denoiser: object) -> bool:
        """Is this denoiser one of ours?"""

    def families(self, cross_attention_dim: int | None = None) -> Iterator[HostSpec]:
        """The published bases (of one text width, if given), derived from their configs."""

    def from_config(self, config: Mapping[str, Any]) -> HostSpec | None:
        """The sites of a denoiser of this config; None if it is of another class.

        A config that is not described here is built on the meta device, which loads torch.
        """

    def from_weights(self, shapes: Shapes) -> HostSpec | None:
        """The sites of a denoiser whose state dict has these tensors; None if that is not ours."""


class AttachableHost(Host, Protocol):
    """A base architecture that adapters can enter."""

    def describe(self, denoiser: nn.Module) -> HostSpec:
        """The sites of a denoiser (its weights may be on the meta device)."""

    def text_weights(self, denoiser: nn.Module, name: str) -> tuple[Any, Any]:
        """The to_k and to_v weights [width, cross_attention_dim] of the site of that name."""

    def linears(self, denoiser: nn.Module, name: str) -> Mapping[str, nn.Module]:
        """The linear maps of the attention layer of that name: q, k, v and out.

        Raises AttachError where the layer does not use them.
        """

    def install(self, denoiser: nn.Module, spec: HostSpec, state: AttentionState) -> Any:
        """Let every site read the state; returns what `remove` needs. All sites or none."""

    def intact(self, installed: Any) -> bool:
        """Is every site still ours?"""

    def remove(self, installed: Any) -> None:
        """The exact inverse of install."""
