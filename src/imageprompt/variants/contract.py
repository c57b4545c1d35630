"""What every variant states; the protocol of the files beside this one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from imageprompt.spec import Feature, NullRule, ProjectorOptions, ProjectorSpec, Shapes

if TYPE_CHECKING:
    from torch import nn


class Variant(Protocol):
    """An adapter architecture, told by the shapes of its projector alone."""

    @property
    def name(self) -> str: ...

    @property
    def summary(self) -> str: ...

    @property
    def feature(self) -> Feature: ...

    @property
    def null_rule(self) -> NullRule: ...

    @property
    def options(self) -> tuple[str, ...]:
        """Which of ProjectorOptions this variant listens to."""

    def read(self, shapes: Shapes) -> ProjectorSpec | None:
        """The projector that has these tensors (names without prefix), or None if not ours."""

    def propose(
        self, feature_width: int, text_width: int, options: ProjectorOptions
    ) -> ProjectorSpec:
        """A spec for new weights."""

    def build(self, spec: ProjectorSpec) -> nn.Module:
        """The projector module, its state-dict keys equal to the file's `image_proj` keys."""


def projector_shapes(variant: Variant, spec: ProjectorSpec) -> dict[str, tuple[int, ...]]:
    """The template of a projector, from a module on the meta device."""
    import torch

    with torch.device("meta"):
        module = variant.build(spec)
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
