"""base: the pooled image embedding through one linear layer, 4 tokens (ip-adapter_sd15, _sdxl)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from imageprompt.core.spec import (
    EVERY_KIND,
    Feature,
    NullRule,
    ProjectorOptions,
    ProjectorSpec,
    Shape,
    Shapes,
    SiteKind,
)
from imageprompt.variants.tensor_shapes import linear, norm, size

if TYPE_CHECKING:
    from torch import nn

DEFAULT_TOKENS = 4


@dataclass(frozen=True)
class Base:
    name: str = "base"
    summary: str = "global look of the picture: pooled embedding, linear projector, 4 tokens"
    feature = Feature("image_embeds")
    null_rule: NullRule = "zero features"
    options: tuple[str, ...] = ("tokens",)
    site_kinds: tuple[SiteKind, ...] = EVERY_KIND

    def read(self, shapes: Shapes) -> ProjectorSpec | None:
        rows = size(shapes, ("proj.weight", 0), ("proj.bias", 0))
        cross_attention_dim = size(shapes, ("norm.weight", 0), ("norm.bias", 0))
        if not (rows and cross_attention_dim):
            return None
        return ProjectorSpec(
            feature_dim=size(shapes, ("proj.weight", 1)),
            cross_attention_dim=cross_attention_dim,
            tokens=rows // cross_attention_dim,
        )

    def projector_shapes(self, spec: ProjectorSpec) -> dict[str, Shape]:
        rows = (spec.tokens or DEFAULT_TOKENS) * spec.cross_attention_dim
        return linear("proj", rows, spec.feature_dim) | norm("norm", spec.cross_attention_dim)

    def propose(
        self, feature_dim: int, cross_attention_dim: int, options: ProjectorOptions
    ) -> ProjectorSpec:
        tokens = options.tokens or DEFAULT_TOKENS
        return ProjectorSpec(
            feature_dim=feature_dim, cross_attention_dim=cross_attention_dim, tokens=tokens
        )

    def build(self, spec: ProjectorSpec) -> nn.Module:
        from imageprompt.variants._projectors import LinearProjector

        return LinearProjector(
            spec.feature_dim, spec.cross_attention_dim, spec.tokens or DEFAULT_TOKENS
        )


VARIANT = Base()
