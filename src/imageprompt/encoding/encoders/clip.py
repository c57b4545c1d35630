"""CLIP vision towers with projection (ViT-H, bigG, L/14, tiny)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from imageprompt.core.spec import ImageFeature
from imageprompt.encoding.encoders.contract import VisionEncoder, VisionKind

if TYPE_CHECKING:
    from torch import Tensor

_CLASS = "CLIPVisionModelWithProjection"


class ClipEncoder(VisionEncoder):
    """Pictures -> the projected `image_embeds` [n, F], or patches [n, L, F]."""

    family = "CLIP"
    classes: ClassVar[Mapping[str, str]] = {"clip": _CLASS, "clip_vision_model": _CLASS}

    @staticmethod
    def default_processor(config: Any) -> Any:
        from transformers import CLIPImageProcessorPil

        side = config.image_size
        return CLIPImageProcessorPil(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        )

    @property
    def embed_width(self) -> int:
        """Width of the pooled, projected embedding."""
        return int(self.model.config.projection_dim)

    @property
    def widths(self) -> dict[ImageFeature, int]:
        return {"image_embeds": self.embed_width, **super().widths}

    def feature_of(self, pixels: Tensor, feature: ImageFeature) -> Tensor:
        if feature == "pooler_output":
            return self.model.vision_model(pixels).pooler_output  # type: ignore[no-any-return]
        return super().feature_of(pixels, feature)


ENCODER = VisionKind("clip", ClipEncoder)
