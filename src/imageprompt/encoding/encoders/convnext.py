"""ConvNeXt, ConvNeXt V2 and DINOv3's ConvNeXt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from imageprompt.core.spec import ImageFeature
from imageprompt.encoding.encoders.contract import VisionEncoder, VisionKind

if TYPE_CHECKING:
    from torch import Tensor

TRAINED_SIDE = 224


class ConvNextEncoder(VisionEncoder):
    """Pictures -> the mean of all positions as `pooler_output` [n, F], or positions row by row.

    `hidden_states[-2]` is the stage before the last: four times the positions, of another width.
    """

    family = "ConvNeXt"
    classes: ClassVar[Mapping[str, str]] = {
        "convnext": "ConvNextModel",
        "convnextv2": "ConvNextV2Model",
        "dinov3_convnext": "DINOv3ConvNextModel",
    }

    @staticmethod
    def default_processor(config: Any) -> Any:
        from imageprompt.encoding.encoders._folder import IMAGENET, dinov3_processor

        side = min(config.image_size, TRAINED_SIDE)
        if config.model_type == "dinov3_convnext":
            return dinov3_processor(side)
        from transformers import ConvNextImageProcessorPil

        return ConvNextImageProcessorPil(
            size={"shortest_edge": side},
            **IMAGENET,
        )

    @property
    def image_size(self) -> int:
        from imageprompt.encoding.encoders._folder import side_of

        return side_of(self.processor)

    @property
    def hidden_width(self) -> int:
        return int(self.model.config.hidden_sizes[-1])

    @property
    def widths(self) -> dict[ImageFeature, int]:
        return {**super().widths, "hidden_states[-2]": int(self.model.config.hidden_sizes[-2])}

    def feature_of(self, pixels: Tensor, feature: ImageFeature) -> Tensor:
        made = super().feature_of(pixels, feature)
        return made.flatten(2).transpose(1, 2) if made.ndim == 4 else made


ENCODER = VisionKind("convnext", ConvNextEncoder)
