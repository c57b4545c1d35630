"""plus: patch features through a resampler, 16 tokens (ip-adapter-plus, -plus-face, Kolors)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from imageprompt.spec import RESAMPLER_HEAD_WIDTH as HEAD_WIDTH
from imageprompt.spec import Feature, NullRule, ProjectorOptions, ProjectorSpec, Shapes

if TYPE_CHECKING:
    from torch import nn

DEFAULT_TOKENS = 16
DEFAULT_DEPTH = 4
WIDEST_DEFAULT = 1280


@dataclass(frozen=True)
class Plus:
    name: str = "plus"
    summary: str = "details of the picture: patch features, resampler, 16 tokens"
    feature: Feature = "hidden_states[-2]"
    null_rule: NullRule = "zero pixels"
    options: tuple[str, ...] = ("tokens", "depth", "heads", "width")

    def read(self, shapes: Shapes) -> ProjectorSpec | None:
        needed = ("latents", "proj_in.weight", "proj_out.weight", "layers.0.0.to_q.weight")
        if any(name not in shapes for name in needed):
            return None
        _, tokens, width = shapes["latents"]
        return ProjectorSpec(
            feature_width=shapes["proj_in.weight"][1],
            text_width=shapes["proj_out.weight"][0],
            tokens=tokens,
            depth=len({name.split(".")[1] for name in shapes if name.startswith("layers.")}),
            heads=shapes["layers.0.0.to_q.weight"][0] // HEAD_WIDTH,
            width=width,
        )

    def propose(
        self, feature_width: int, text_width: int, options: ProjectorOptions
    ) -> ProjectorSpec:
        width = options.width or min(text_width, WIDEST_DEFAULT)  # 768 for SD1.5, 1280 for SDXL
        return ProjectorSpec(
            feature_width=feature_width,
            text_width=text_width,
            tokens=options.tokens or DEFAULT_TOKENS,
            depth=options.depth or DEFAULT_DEPTH,
            heads=options.heads or max(width // HEAD_WIDTH, 1),
            width=width,
        )

    def build(self, spec: ProjectorSpec) -> nn.Module:
        from imageprompt.projectors import Resampler

        return Resampler(
            spec.feature_width,
            spec.text_width,
            spec.tokens or DEFAULT_TOKENS,
            depth=spec.depth,
            heads=spec.heads,
            width=spec.width,
        )


VARIANT = Plus()
