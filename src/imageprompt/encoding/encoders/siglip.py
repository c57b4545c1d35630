"""SigLIP, and SigLIP 2 of a fixed resolution, whose config says SigLIP as well."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from imageprompt.encoding.encoders.contract import VisionEncoder, VisionKind


class SiglipEncoder(VisionEncoder):
    """Pictures, squashed to squares -> the attention-pooled `pooler_output` [n, F], or patches."""

    family = "SigLIP"
    classes: ClassVar[Mapping[str, str]] = {
        "siglip": "SiglipVisionModel",
        "siglip_vision_model": "SiglipVisionModel",
    }

    @staticmethod
    def default_processor(config: Any) -> Any:
        from transformers import SiglipImageProcessorPil

        return SiglipImageProcessorPil(
            size={"height": config.image_size, "width": config.image_size}
        )

    @property
    def has_pooler(self) -> bool:
        return bool(self.model.config.vision_use_head)


ENCODER = VisionKind("siglip", SiglipEncoder)
