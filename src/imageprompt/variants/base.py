"""base: the pooled image embedding through one linear layer, 4 tokens (ip-adapter_sd15, _sdxl)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from imageprompt.core.spec import Feature, NullRule, ProjectorOptions, ProjectorSpec, Shape, Shapes
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

    def read(self, shapes: Shapes) -> ProjectorSpec | None:
        rows = size(shapes, ("proj.weight", 0), ("proj.bias", 0))
        text_width = size(shapes, ("norm.weight", 0), ("norm.bias", 0))
        if not (rows and text_width):
            return None
        return ProjectorSpec(
            feature_width=size(shapes, ("proj.weight", 1)),
            text_width=text_width,
            tokens=rows // text_width,
        )

    def projector_shapes(self, spec: ProjectorSpec) -> dict[str, Shape]:
        rows = (spec.tokens or DEFAULT_TOKENS) * spec.text_width
        return linear("proj", rows, spec.feature_width) | norm("norm", spec.text_width)

    def propose(
        self, feature_width: int, text_width: int, options: ProjectorOptions
    ) -> ProjectorSpec:
        tokens = options.tokens or DEFAULT_TOKENS
        return ProjectorSpec(feature_width=feature_width, text_width=text_width, tokens=tokens)

    def build(self, spec: ProjectorSpec) -> nn.Module:
        from imageprompt.variants._projectors import LinearProjector

        return LinearProjector(spec.feature_width, spec.text_width, spec.tokens or DEFAULT_TOKENS)


VARIANT = Base()
