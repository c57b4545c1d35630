"""full: every patch becomes a token through an MLP (ip-adapter-full-face)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from imageprompt.core.spec import Feature, NullRule, ProjectorOptions, ProjectorSpec, Shape, Shapes
from imageprompt.variants.tensor_shapes import linear, norm, size

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Full:
    name: str = "full"
    summary: str = "the whole picture: patch features, MLP, one token per patch (257 for ViT-H)"
    feature = Feature("hidden_states[-2]")
    null_rule: NullRule = "zero pixels"
    options: tuple[str, ...] = ()

    def read(self, shapes: Shapes) -> ProjectorSpec | None:
        # proj.3 is a LayerNorm: its 1-dim weight distinguishes this MLP from others
        cross_attention_dim = size(shapes, ("proj.3.weight", 0), ("proj.3.bias", 0))
        if not cross_attention_dim or len(shapes.get("proj.3.weight", (1,))) != 1:
            return None
        feature_dim = size(shapes, ("proj.0.weight", 1), ("proj.2.weight", 1), ("proj.0.bias", 0))
        return ProjectorSpec(feature_dim=feature_dim, cross_attention_dim=cross_attention_dim)

    def projector_shapes(self, spec: ProjectorSpec) -> dict[str, Shape]:
        inner_dim = spec.feature_dim
        return (
            linear("proj.0", inner_dim, inner_dim)
            | linear("proj.2", spec.cross_attention_dim, inner_dim)
            | norm("proj.3", spec.cross_attention_dim)
        )

    def propose(
        self, feature_dim: int, cross_attention_dim: int, options: ProjectorOptions
    ) -> ProjectorSpec:
        return ProjectorSpec(feature_dim=feature_dim, cross_attention_dim=cross_attention_dim)

    def build(self, spec: ProjectorSpec) -> nn.Module:
        from imageprompt.variants._projectors import MLPProjector

        return MLPProjector(spec.feature_dim, spec.cross_attention_dim)


VARIANT = Full()
