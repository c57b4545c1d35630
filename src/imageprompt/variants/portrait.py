"""portrait: ArcFace embeddings of one or several faces, 16 tokens each, no LoRA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from imageprompt.core.spec import Feature, NullRule, ProjectorOptions, ProjectorSpec, Shape, Shapes
from imageprompt.variants.tensor_shapes import read_token_mlp, token_mlp

if TYPE_CHECKING:
    from torch import nn

TOKENS = 16
FACEID_TOKENS = 4  # with as few tokens it is a FaceID adapter whose LoRA is missing


@dataclass(frozen=True)
class Portrait:
    name: str = "portrait"
    summary: str = "whose face it is, from one or more pictures: ArcFace embedding, MLP, 16 tokens"
    feature = Feature(face="face_embeds")
    null_rule: NullRule = "zero features"
    options: tuple[str, ...] = ()

    def read(self, shapes: Shapes) -> ProjectorSpec | None:
        spec = read_token_mlp(shapes)
        return spec if spec and (spec.tokens or 0) > FACEID_TOKENS else None

    def projector_shapes(self, spec: ProjectorSpec) -> dict[str, Shape]:
        return token_mlp(spec)

    def propose(
        self, feature_dim: int, cross_attention_dim: int, options: ProjectorOptions
    ) -> ProjectorSpec:
        return ProjectorSpec(
            feature_dim=feature_dim,
            cross_attention_dim=cross_attention_dim,
            tokens=TOKENS,
            inner_dim=2 * feature_dim,
        )

    def build(self, spec: ProjectorSpec) -> nn.Module:
        from imageprompt.variants._projectors import TokenMLP

        return TokenMLP(
            spec.feature_dim, spec.cross_attention_dim, spec.tokens or 0, inner_dim=spec.inner_dim
        )


VARIANT = Portrait()
