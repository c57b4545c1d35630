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
from imageprompt.variants.tensor_shapes import lora, read_token_mlp, token_mlp

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
        return host.shapes(self.site_kinds) | lora(host, lora_rank)

    def propose(
        self, feature_dim: int, cross_attention_dim: int, options: ProjectorOptions
    ) -> ProjectorSpec:
        return ProjectorSpec(
            feature_dim=feature_dim,
            cross_attention_dim=cross_attention_dim,
            tokens=options.tokens or DEFAULT_TOKENS,
            inner_dim=2 * feature_dim,
        )

    def build(self, spec: ProjectorSpec) -> nn.Module:
        from imageprompt.variants._projectors import TokenMLP

        return TokenMLP(
            spec.feature_dim, spec.cross_attention_dim, spec.tokens or 0, inner_dim=spec.inner_dim
        )


VARIANT = FaceID()
