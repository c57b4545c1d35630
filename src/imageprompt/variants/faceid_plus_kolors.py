"""faceid-plus-kolors: as faceid-plus-v2, without LoRA, for Kolors (Kolors-IP-Adapter-FaceID-Plus).

Its tokens are as wide as the states of Kolors' language model, and the base projects them like its
text before K' and V' read them.
"""

from __future__ import annotations

from dataclasses import dataclass

from imageprompt.core.spec import RESAMPLER_HEAD_DIM as HEAD_DIM
from imageprompt.core.spec import (
    Feature,
    HostSpec,
    NullRule,
    ProjectorOptions,
    ProjectorSpec,
    Shape,
)
from imageprompt.variants.faceid_plus import DEFAULT_DEPTH, FaceIDPlus
from imageprompt.variants.tensor_shapes import FACE_DIM

TOKENS = 6
TEXT_WIDTH = 4096
"""Of ChatGLM's states."""


@dataclass(frozen=True)
class FaceIDPlusKolors(FaceIDPlus):
    name: str = "faceid-plus-kolors"
    summary: str = "face and its look on Kolors: as faceid-plus-v2, 6 tokens, no LoRA"
    feature = Feature("hidden_states[-2]", "raw face_embeds")
    null_rule: NullRule = "zero features"
    options: tuple[str, ...] = ("tokens", "depth", "heads", "inner_dim")
    shortcut: bool = True
    projected_as_text: bool = True
    """Does the base project its tokens before K' and V' read them?"""

    def site_shapes(self, host: HostSpec, spec: ProjectorSpec, lora_rank: int) -> dict[str, Shape]:
        return host.shapes(self.site_kinds)

    def propose(
        self, feature_dim: int, cross_attention_dim: int, options: ProjectorOptions
    ) -> ProjectorSpec:
        width = options.inner_dim or TEXT_WIDTH
        return ProjectorSpec(
            feature_dim=feature_dim,
            cross_attention_dim=width,
            tokens=options.tokens or TOKENS,
            depth=options.depth or DEFAULT_DEPTH,
            heads=options.heads or max(width // HEAD_DIM, 1),
            inner_dim=width,
            face_dim=FACE_DIM,
        )


VARIANT = FaceIDPlusKolors()
