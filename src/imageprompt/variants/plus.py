"""plus: patch features through a resampler, 16 tokens (ip-adapter-plus, -plus-face, Kolors)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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
from imageprompt.core.spec import RESAMPLER_HEAD_DIM as HEAD_DIM
from imageprompt.variants.tensor_shapes import ResamplerSize, resampler, size

if TYPE_CHECKING:
    from torch import nn

DEFAULT_TOKENS = 16
DEFAULT_DEPTH = 4
MAX_INNER_DIM = 1280


@dataclass(frozen=True)
class Plus:
    name: str = "plus"
    summary: str = "details of the picture: patch features, resampler, 16 tokens"
    feature = Feature("hidden_states[-2]")
    null_rule: NullRule = "zero pixels"
    options: tuple[str, ...] = ("tokens", "depth", "heads", "inner_dim")
    site_kinds: tuple[SiteKind, ...] = EVERY_KIND
    twins: Mapping[str, str] = field(
        default_factory=lambda: {"plus-face": "the same, trained on cropped faces"}
    )

    def read(self, shapes: Shapes) -> ProjectorSpec | None:
        found = ResamplerSize.of(shapes)
        if found is None:
            return None
        tokens = size(shapes, ("latents", 1)) or DEFAULT_TOKENS
        return ProjectorSpec(tokens=tokens, **vars(found))

    def projector_shapes(self, spec: ProjectorSpec) -> dict[str, Shape]:
        return {"latents": (1, spec.tokens or DEFAULT_TOKENS, spec.inner_dim)} | resampler(
            spec.feature_dim,
            spec.cross_attention_dim,
            depth=spec.depth,
            heads=spec.heads,
            inner_dim=spec.inner_dim,
        )

    def propose(
        self, feature_dim: int, cross_attention_dim: int, options: ProjectorOptions
    ) -> ProjectorSpec:
        # 768 for SD1.5, 1280 for SDXL
        inner_dim = options.inner_dim or min(cross_attention_dim, MAX_INNER_DIM)
        return ProjectorSpec(
            feature_dim=feature_dim,
            cross_attention_dim=cross_attention_dim,
            tokens=options.tokens or DEFAULT_TOKENS,
            depth=options.depth or DEFAULT_DEPTH,
            heads=options.heads or max(inner_dim // HEAD_DIM, 1),
            inner_dim=inner_dim,
        )

    def build(self, spec: ProjectorSpec) -> nn.Module:
        from imageprompt.variants._projectors import Resampler

        return Resampler(
            spec.feature_dim,
            spec.cross_attention_dim,
            spec.tokens or DEFAULT_TOKENS,
            depth=spec.depth,
            heads=spec.heads,
            inner_dim=spec.inner_dim,
        )


VARIANT = Plus()
