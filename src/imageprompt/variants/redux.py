"""redux: FLUX Redux: SigLIP patches through an MLP, one token per patch, after those of the text.

It has no K' and V' of its own: the base reads its tokens as it reads those of T5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from imageprompt.core.spec import (
    Entry,
    Feature,
    HostSpec,
    NullRule,
    ProjectorOptions,
    ProjectorSpec,
    Shape,
    Shapes,
    SiteKind,
)
from imageprompt.variants.tensor_shapes import linear, size

if TYPE_CHECKING:
    from torch import nn

INNER_MULTIPLE = 3
"""Inner width of the MLP, as a multiple of its tokens' width."""


@dataclass(frozen=True)
class Redux:
    name: str = "redux"
    summary: str = "the whole picture on FLUX: SigLIP patches, 729 tokens beside those of the text"
    feature = Feature("last_hidden_state")
    null_rule: NullRule = "no tokens"
    options: tuple[str, ...] = ()
    site_kinds: tuple[SiteKind, ...] = ("text",)
    entries: Mapping[SiteKind, Entry] = field(default_factory=lambda: {"text": "text"})

    def read(self, shapes: Shapes) -> ProjectorSpec | None:
        width = size(shapes, ("redux_down.weight", 0), ("redux_down.bias", 0))
        inner = size(shapes, ("redux_up.weight", 0), ("redux_down.weight", 1), ("redux_up.bias", 0))
        if not (width and inner):
            return None
        return ProjectorSpec(
            feature_dim=size(shapes, ("redux_up.weight", 1)),
            cross_attention_dim=width,
            inner_dim=inner,
        )

    def projector_shapes(self, spec: ProjectorSpec) -> dict[str, Shape]:
        return linear("redux_up", spec.inner_dim, spec.feature_dim) | linear(
            "redux_down", spec.cross_attention_dim, spec.inner_dim
        )

    def site_shapes(self, host: HostSpec, spec: ProjectorSpec, lora_rank: int) -> dict[str, Shape]:
        return {}

    def propose(
        self, feature_dim: int, cross_attention_dim: int, options: ProjectorOptions
    ) -> ProjectorSpec:
        return ProjectorSpec(
            feature_dim=feature_dim,
            cross_attention_dim=cross_attention_dim,
            inner_dim=INNER_MULTIPLE * cross_attention_dim,
        )

    def build(self, spec: ProjectorSpec) -> nn.Module:
        from imageprompt.variants._projectors import ReduxProjector

        return ReduxProjector(spec.feature_dim, spec.cross_attention_dim, inner_dim=spec.inner_dim)


VARIANT = Redux()
