"""faceid-plus: ArcFace embedding and patch features of the face, perceiver, 4 tokens, LoRA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from imageprompt.core.spec import RESAMPLER_HEAD_DIM as HEAD_DIM
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
from imageprompt.variants.tensor_shapes import (
    FACE_DIM,
    ResamplerSize,
    linear,
    lora,
    norm,
    resampler,
    size,
    under,
    without_prefix,
)

if TYPE_CHECKING:
    from torch import nn

PERCEIVER = "perceiver_resampler"
DEFAULT_TOKENS = 4
DEFAULT_DEPTH = 4


@dataclass(frozen=True)
class FaceIDPlus:
    name: str = "faceid-plus"
    summary: str = "face and its look: ArcFace queries patch features, 4 tokens, LoRA"
    feature = Feature("hidden_states[-2]", "face_embeds")
    null_rule: NullRule = "zero pixels"
    options: tuple[str, ...] = ("tokens", "depth", "heads")
    site_kinds: tuple[SiteKind, ...] = ("cross",)
    shortcut: bool = False
    """Are the tokens of the face embedding added to the result (v2)?"""

    def read(self, shapes: Shapes) -> ProjectorSpec | None:
        found = ResamplerSize.of(without_prefix(PERCEIVER, shapes))
        if found is None:
            return None
        rows = size(shapes, ("proj.2.weight", 0), ("proj.2.bias", 0))
        return ProjectorSpec(
            tokens=rows // found.inner_dim or DEFAULT_TOKENS,
            face_dim=size(shapes, ("proj.0.weight", 1)),
            **vars(found),
        )

    def projector_shapes(self, spec: ProjectorSpec) -> dict[str, Shape]:
        rows = (spec.tokens or DEFAULT_TOKENS) * spec.inner_dim
        perceiver = resampler(
            spec.feature_dim,
            spec.cross_attention_dim,
            depth=spec.depth,
            heads=spec.heads,
            inner_dim=spec.inner_dim,
        )
        return (
            linear("proj.0", 2 * spec.face_dim, spec.face_dim)
            | linear("proj.2", rows, 2 * spec.face_dim)
            | norm("norm", spec.inner_dim)
            | under(PERCEIVER, perceiver)
        )

    def site_shapes(self, host: HostSpec, spec: ProjectorSpec, lora_rank: int) -> dict[str, Shape]:
        return host.shapes(self.site_kinds) | lora(host, lora_rank)

    def propose(
        self, feature_dim: int, cross_attention_dim: int, options: ProjectorOptions
    ) -> ProjectorSpec:
        return ProjectorSpec(
            feature_dim=feature_dim,
            cross_attention_dim=cross_attention_dim,
            tokens=options.tokens or DEFAULT_TOKENS,
            depth=options.depth or DEFAULT_DEPTH,
            heads=options.heads or max(cross_attention_dim // HEAD_DIM, 1),
            inner_dim=cross_attention_dim,
            face_dim=FACE_DIM,
        )

    def build(self, spec: ProjectorSpec) -> nn.Module:
        from imageprompt.variants._projectors import FacePerceiver

        return FacePerceiver(
            spec.face_dim,
            spec.feature_dim,
            spec.cross_attention_dim,
            spec.tokens or DEFAULT_TOKENS,
            depth=spec.depth,
            heads=spec.heads,
            inner_dim=spec.inner_dim,
            shortcut=self.shortcut,
        )


VARIANT = FaceIDPlus()
