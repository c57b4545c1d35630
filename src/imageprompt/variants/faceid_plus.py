"""faceid-plus: ArcFace embedding and patch features of the face, perceiver, 4 tokens, LoRA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from imageprompt.core.spec import RESAMPLER_HEAD_WIDTH as HEAD_WIDTH
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
    FACE_WIDTH,
    ResamplerSize,
    inside,
    key_values,
    linear,
    lora,
    norm,
    resampler,
    size,
    under,
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
    """Are the identity's tokens added to what the perceiver makes of them?"""

    def read(self, shapes: Shapes) -> ProjectorSpec | None:
        found = ResamplerSize.of(inside(PERCEIVER, shapes))
        if found is None:
            return None
        rows = size(shapes, ("proj.2.weight", 0), ("proj.2.bias", 0))
        return ProjectorSpec(
            tokens=rows // found.width or DEFAULT_TOKENS,
            face_width=size(shapes, ("proj.0.weight", 1)),
            **vars(found),
        )

    def projector_shapes(self, spec: ProjectorSpec) -> dict[str, Shape]:
        rows = (spec.tokens or DEFAULT_TOKENS) * spec.width
        perceiver = resampler(
            spec.feature_width,
            spec.text_width,
            depth=spec.depth,
            heads=spec.heads,
            width=spec.width,
        )
        return (
            linear("proj.0", 2 * spec.face_width, spec.face_width)
            | linear("proj.2", rows, 2 * spec.face_width)
            | norm("norm", spec.width)
            | under(PERCEIVER, perceiver)
        )

    def site_shapes(self, host: HostSpec, spec: ProjectorSpec, lora_rank: int) -> dict[str, Shape]:
        return key_values(host) | lora(host, lora_rank)

    def propose(
        self, feature_width: int, text_width: int, options: ProjectorOptions
    ) -> ProjectorSpec:
        return ProjectorSpec(
            feature_width=feature_width,
            text_width=text_width,
            tokens=options.tokens or DEFAULT_TOKENS,
            depth=options.depth or DEFAULT_DEPTH,
            heads=options.heads or max(text_width // HEAD_WIDTH, 1),
            width=text_width,
            face_width=FACE_WIDTH,
        )

    def build(self, spec: ProjectorSpec) -> nn.Module:
        from imageprompt.variants._projectors import FacePerceiver

        return FacePerceiver(
            spec.face_width,
            spec.feature_width,
            spec.text_width,
            spec.tokens or DEFAULT_TOKENS,
            depth=spec.depth,
            heads=spec.heads,
            width=spec.width,
            shortcut=self.shortcut,
        )


VARIANT = FaceIDPlus()
