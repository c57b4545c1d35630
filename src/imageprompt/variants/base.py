"""base: the pooled image embedding through one linear layer, 4 tokens (ip-adapter_sd15, _sdxl)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from imageprompt.spec import Feature, NullRule, ProjectorOptions, ProjectorSpec, Shapes

if TYPE_CHECKING:
    from torch import nn

DEFAULT_TOKENS = 4


@dataclass(frozen=True)
class Base:
    name: str = "base"
    summary: str = "global look of the picture: pooled embedding, linear projector, 4 tokens"
    feature: Feature = "image_embeds"
    null_rule: NullRule = "zero features"
    options: tuple[str, ...] = ("tokens",)

    def read(self, shapes: Shapes) -> ProjectorSpec | None:
        if "proj.weight" not in shapes or "norm.weight" not in shapes:
            return None
        rows, feature_width = shapes["proj.weight"]
        (text_width,) = shapes["norm.weight"]
        return ProjectorSpec(
            feature_width=feature_width, text_width=text_width, tokens=rows // text_width
        )

    def propose(
        self, feature_width: int, text_width: int, options: ProjectorOptions
    ) -> ProjectorSpec:
        tokens = options.tokens or DEFAULT_TOKENS
        return ProjectorSpec(feature_width=feature_width, text_width=text_width, tokens=tokens)

    def build(self, spec: ProjectorSpec) -> nn.Module:
        from imageprompt.projectors import LinearProjector

        return LinearProjector(spec.feature_width, spec.text_width, spec.tokens or DEFAULT_TOKENS)


VARIANT = Base()
