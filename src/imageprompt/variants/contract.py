"""What every variant states, and what it may state; the protocol of the files beside this one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from imageprompt.core.spec import (
    Feature,
    HostSpec,
    NullRule,
    ProjectorOptions,
    ProjectorSpec,
    Shape,
    Shapes,
    SiteKind,
)
from imageprompt.variants import tensor_shapes

if TYPE_CHECKING:
    from torch import nn


class Variant(Protocol):
    """An adapter architecture, told by the shapes of its tensors alone."""

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
        """The projector that has these tensors (names without prefix), or None if not ours.

        Some of them may be missing or misshapen: that is judged by the template.
        """

    def propose(
        self, feature_dim: int, cross_attention_dim: int, options: ProjectorOptions
    ) -> ProjectorSpec:
        """A spec for new weights."""

    def build(self, spec: ProjectorSpec) -> nn.Module:
        """The projector module, its state-dict keys equal to the file's `image_proj` keys."""


@runtime_checkable
class Templated(Protocol):
    """A variant whose projector's template needs no torch; else it is derived from `build`."""

    def projector_shapes(self, spec: ProjectorSpec) -> dict[str, Shape]: ...


@runtime_checkable
class Sited(Protocol):
    """A variant with more, or other, weights at its sites than K' and V' in cross-attention."""

    @property
    def site_kinds(self) -> tuple[SiteKind, ...]:
        """The kinds of site that it enters."""

    def site_shapes(
        self, host: HostSpec, spec: ProjectorSpec, lora_rank: int
    ) -> dict[str, Shape]: ...


def projector_shapes(variant: Variant, spec: ProjectorSpec) -> dict[str, Shape]:
    """The template of a projector: tensor names inside it, and their shapes."""
    if isinstance(variant, Templated):
        return variant.projector_shapes(spec)
    import torch

    with torch.device("meta"):
        module = variant.build(spec)
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def site_kinds(variant: Variant) -> tuple[SiteKind, ...]:
    """The kinds of site that a variant enters."""
    return variant.site_kinds if isinstance(variant, Sited) else ("cross",)


def site_shapes(
    variant: Variant, host: HostSpec, spec: ProjectorSpec, lora_rank: int = tensor_shapes.LORA_RANK
) -> dict[str, Shape]:
    """The template of all tensors at the sites of a host, `{file id}.to_k_ip.weight` and so on."""
    if isinstance(variant, Sited):
        return variant.site_shapes(host, spec, lora_rank)
    return tensor_shapes.key_values(host)


def twins(variant: Variant) -> Mapping[str, str]:
    """Variants of the same architecture, told by nothing in the file: name -> what differs."""
    return getattr(variant, "twins", {})


def meant_before(variant: Variant) -> str:
    """The more general variant that also fits whatever fits this one; "" if there is none."""
    return getattr(variant, "meant_before", "")


def pending(variant: Variant) -> str:
    """Why adapters of this variant cannot be run yet; "" if they can."""
    return getattr(variant, "pending", "")
