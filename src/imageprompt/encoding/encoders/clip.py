"""CLIP vision towers with projection (ViT-H, bigG, L/14, tiny) and their preprocessing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imageprompt.core.errors import EncoderError
from imageprompt.core.hub import locate_folder
from imageprompt.core.spec import ImageFeature

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import Tensor


class ClipEncoder:
    """Pictures -> `image_embeds` [n, F] or `hidden_states[-2]` [n, L, F].

    `model` is a CLIPVisionModelWithProjection, `processor` its image processor (default: CLIP's own
    at the model's size). The model is put into eval mode and runs without gradients.
    """

    def __init__(self, model: Any, processor: Any = None) -> None:
        self.model = model.eval()
        self.processor = processor or _default_processor(model.config.image_size)

    @classmethod
    def load(
        cls, source: str | os.PathLike[str], *, device: Any = None, dtype: Any = None
    ) -> ClipEncoder:
        """Load a folder in transformers' layout, or `owner/repo/sub/folder` from the Hub.

        Raises NotFoundError, EncoderError.
        """
        import torch
        from transformers import CLIPVisionModelWithProjection
        from transformers.utils import logging

        model_class: Any = CLIPVisionModelWithProjection
        log: Any = logging
        folder = locate_folder(source)
        if not (folder / "config.json").is_file():
            raise EncoderError(
                f"encoder {str(source)!r}",
                reason="not a folder with config.json and weights",
                hint="Give the image_encoder folder of the adapter's repository.",
            )
        verbosity = log.get_verbosity()
        log.set_verbosity_error()  # its report is raised as an error below
        try:
            model, report = model_class.from_pretrained(
                folder,
                dtype=dtype or torch.float32,
                local_files_only=True,
                output_loading_info=True,
            )
            missing = sorted(report["missing_keys"])
            reason = f"{missing[0]} is missing" if missing else ""
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
        finally:
            log.set_verbosity(verbosity)
        if reason:
            raise EncoderError(
                f"encoder {str(source)!r}",
                reason=f"not a CLIP vision tower with projection ({reason})",
                hint="Give the folder of a CLIPVisionModelWithProjection.",
            )
        return cls(model.to(device) if device else model, _stored_processor(folder))

    @property
    def image_size(self) -> int:
        return int(self.model.config.image_size)

    @property
    def embed_width(self) -> int:
        """Width of the pooled, projected embedding."""
        return int(self.model.config.projection_dim)

    @property
    def hidden_width(self) -> int:
        """Width of the patch features."""
        return int(self.model.config.hidden_size)

    def width(self, feature: ImageFeature) -> int:
        widths = {"image_embeds": self.embed_width, "hidden_states[-2]": self.hidden_width}
        if feature not in widths:
            raise EncoderError(
                "a CLIP image encoder",
                reason=f"makes {' and '.join(widths)}, not {feature}",
                hint="Pass ready-made features= to encode().",
            )
        return widths[feature]

    @cached_property
    def fingerprint(self) -> str:
        from imageprompt.core.fingerprint import fingerprint

        return fingerprint(self.model.state_dict())

    def preprocess(self, pictures: Sequence[Image]) -> Tensor:
        """RGB pictures -> normalised pixels [n, 3, S, S] on the model's device, in its dtype."""
        pixels = self.processor(images=list(pictures), return_tensors="pt").pixel_values
        return pixels.to(self.model.device, self.model.dtype)  # type: ignore[no-any-return]

    def encode(self, pictures: Sequence[Image], feature: ImageFeature) -> Tensor:
        return self.encode_pixels(self.preprocess(pictures), feature)

    def encode_null(self, feature: ImageFeature) -> Tensor:
        import torch

        side = self.image_size
        pixels = torch.zeros(1, 3, side, side, device=self.model.device, dtype=self.model.dtype)
        return self.encode_pixels(pixels, feature)

    def encode_pixels(self, pixels: torch.Tensor, feature: ImageFeature) -> Tensor:
        """Normalised pixels [n, 3, S, S] -> features."""
        import torch

        with torch.no_grad():
            if feature == "image_embeds":
                return self.model(pixels).image_embeds  # type: ignore[no-any-return]
            return self.model(pixels, output_hidden_states=True).hidden_states[-2]  # type: ignore[no-any-return]


class _ClipKind:
    name = "clip"
    summary = "a CLIPVisionModelWithProjection or a folder that holds one"

    def claims(self, source: object) -> bool:
        if isinstance(source, str | os.PathLike):
            return True
        from transformers import CLIPVisionModelWithProjection

        return isinstance(source, CLIPVisionModelWithProjection)

    def load(self, source: Any) -> ClipEncoder:
        return (
            ClipEncoder.load(source)
            if isinstance(source, str | os.PathLike)
            else ClipEncoder(source)
        )


def _default_processor(side: int) -> Any:
    from transformers import CLIPImageProcessorPil

    return CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )


def _stored_processor(folder: Path) -> Any:
    """The processor stored in the folder or, in a pipeline, beside it; None if neither has one."""
    from transformers import CLIPImageProcessorPil

    for place in (folder, folder.parent / "feature_extractor"):
        if (place / "preprocessor_config.json").is_file():
            return CLIPImageProcessorPil.from_pretrained(place, local_files_only=True)
    return None


ENCODER = _ClipKind()
