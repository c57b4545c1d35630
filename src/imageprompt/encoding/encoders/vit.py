"""ViT, as trained on ImageNet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from imageprompt.encoding.encoders.contract import VisionEncoder, VisionKind


class VitEncoder(VisionEncoder):
    """Pictures, squashed to squares -> `pooler_output` [n, F] if it has a pooler, or patches."""

    family = "ViT"
    classes: ClassVar[Mapping[str, str]] = {"vit": "ViTModel"}

    @staticmethod
    def default_processor(config: Any) -> Any:
        from transformers import ViTImageProcessorPil

        return ViTImageProcessorPil(size={"height": config.image_size, "width": config.image_size})

    @property
    def has_pooler(self) -> bool:
        return self.model.pooler is not None


ENCODER = VisionKind("vit", VitEncoder)
