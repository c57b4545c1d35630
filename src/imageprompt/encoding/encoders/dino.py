"""DINOv2, with and without registers, and DINOv3's ViT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from imageprompt.encoding.encoders.contract import VisionEncoder, VisionKind

TRAINED_SIDE = 224
"""Of the squares that the published models read; positions are interpolated to it."""


class DinoEncoder(VisionEncoder):
    """Pictures -> the class token as `pooler_output` [n, F]; or class token, registers, patches."""

    family = "DINO"
    classes: ClassVar[Mapping[str, str]] = {
        "dinov2": "Dinov2Model",
        "dinov2_with_registers": "Dinov2WithRegistersModel",
        "dinov3_vit": "DINOv3ViTModel",
    }

    @staticmethod
    def default_processor(config: Any) -> Any:
        from imageprompt.encoding.encoders._folder import IMAGENET, dinov3_processor

        side = min(config.image_size, TRAINED_SIDE)
        if config.model_type == "dinov3_vit":
            return dinov3_processor(side)
        from transformers import BitImageProcessorPil

        return BitImageProcessorPil(
            size={"shortest_edge": side * 256 // 224},
            crop_size={"height": side, "width": side},
            **IMAGENET,
        )

    @property
    def image_size(self) -> int:
        from imageprompt.encoding.encoders._folder import side_of

        return side_of(self.processor)


ENCODER = VisionKind("dino", DinoEncoder)
