"""portrait-unnorm: raw ArcFace embeddings through a resampler, 16 tokens (also InstantID's)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from imageprompt.core.spec import Feature, NullRule, ProjectorSpec, Shapes, SiteKind
from imageprompt.variants.plus import Plus
from imageprompt.variants.tensor_shapes import FACE_DIM


@dataclass(frozen=True)
class PortraitUnnorm(Plus):
    name: str = "portrait-unnorm"
    summary: str = "whose face it is: raw ArcFace embeddings, resampler, 16 tokens"
    feature = Feature(face="raw face_embeds")
    null_rule: NullRule = "zero features"
    twins: Mapping[str, str] = field(default_factory=dict)
    more_general: str = "plus"
    site_kinds: tuple[SiteKind, ...] = ("cross",)

    def read(self, shapes: Shapes) -> ProjectorSpec | None:
        spec = super().read(shapes)
        return spec if spec and spec.feature_dim == FACE_DIM else None


VARIANT = PortraitUnnorm()
