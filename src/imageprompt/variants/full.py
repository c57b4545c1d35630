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
        # proj.3 is a LayerNorm here: a 1-dim weight tells this MLP from any other Sequential
        text_width = size(shapes, ("proj.3.weight", 0), ("proj.3.bias", 0))
        if not text_width or len(shapes.get("proj.3.weight", (1,))) != 1:
            return None
        feature_width = size(shapes, ("proj.0.weight", 1), ("proj.2.weight", 1), ("proj.0.bias", 0))
        return ProjectorSpec(feature_width=feature_width, text_width=text_width)

    def projector_shapes(self, spec: ProjectorSpec) -> dict[str, Shape]:
        width = spec.feature_width
        return (
            linear("proj.0", width, width)
            | linear("proj.2", spec.text_width, width)
            | norm("proj.3", spec.text_width)
        )

    def propose(
        self, feature_width: int, text_width: int, options: ProjectorOptions
    ) -> ProjectorSpec:
        return ProjectorSpec(feature_width=feature_width, text_width=text_width)

    def build(self, spec: ProjectorSpec) -> nn.Module:
        from imageprompt.variants._projectors import MLPProjector

        return MLPProjector(spec.feature_width, spec.text_width)


VARIANT = Full()
