"""faceid: a face's ArcFace embedding through an MLP, 4 tokens, LoRA on every attention layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

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
from imageprompt.variants.tensor_shapes import key_values, lora, read_token_mlp, token_mlp

if TYPE_CHECKING:
    from torch import nn

DEFAULT_TOKENS = 4


@dataclass(frozen=True)
class FaceID:
    name: str = "faceid"
    summary: str = "whose face it is: ArcFace embedding, MLP, 4 tokens, LoRA"
    feature = Feature(face="face_embeds")
    null_rule: NullRule = "zero features"
    options: tuple[str, ...] = ("tokens",)
    site_kinds: tuple[SiteKind, ...] = ("cross",)

    def read(self, shapes: Shapes) -> ProjectorSpec | None:
        return read_token_mlp(shapes)

    def projector_shapes(self, spec: ProjectorSpec) -> dict[str, Shape]:
        return token_mlp(spec)

    def site_shapes(self, host: HostSpec, spec: ProjectorSpec, lora_rank: int) -> dict[str, Shape]:
        return key_values(host) | lora(host, lora_rank)

    def propose(
        self, feature_width: int, text_width: int, options: ProjectorOptions
    ) -> ProjectorSpec:
        return ProjectorSpec(
            feature_width=feature_width,
            text_width=text_width,
            tokens=options.tokens or DEFAULT_TOKENS,
            width=2 * feature_width,
        )

    def build(self, spec: ProjectorSpec) -> nn.Module:
        from imageprompt.variants._projectors import TokenMLP

        return TokenMLP(spec.feature_width, spec.text_width, spec.tokens or 0, width=spec.width)


VARIANT = FaceID()
