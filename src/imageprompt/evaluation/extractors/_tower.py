"""Vision towers of transformers as extractors: one pooled row for each picture."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from imageprompt.core import bundled
from imageprompt.core.spec import ImageFeature
from imageprompt.encoding.encoders import open_encoder
from imageprompt.encoding.encoders.contract import VisionEncoder
from imageprompt.evaluation.extractors._weights import Source, identity, is_untrained

if TYPE_CHECKING:
    from PIL.Image import Image

    from imageprompt.encoding.text_encoder import TextTower
    from imageprompt.evaluation.metrics.contract import Rows

OWN = "own encoder"
"""The image encoder of the bundled stack."""
_FILTERS = ("nearest", "Lanczos", "bilinear", "bicubic", "box", "Hamming")
"""PIL's, by number."""


class Tower:
    """Pictures -> a pooled feature, or the first position of a feature with positions."""

    def __init__(self, name: str, encoder: VisionEncoder, feature: ImageFeature) -> None:
        self.name, self.encoder, self._feature = name, encoder, feature
        self.preprocessing = described(encoder.processor)
        self.fingerprint = identity(encoder.fingerprint, self.preprocessing, feature)
        self.width = encoder.width(feature)

    def encode(self, pictures: Sequence[Image]) -> Rows:
        features = self.encoder.encode(pictures, self._feature).float()
        rows: Rows = (features if features.ndim == 2 else features[:, 0]).cpu().numpy()
        return rows


class TwoTowers(Tower):
    """A CLIP with its text tower, which is opened when the first text comes."""

    def __init__(self, name: str, encoder: VisionEncoder, place: str) -> None:
        super().__init__(name, encoder, "image_embeds")
        self._place = place

    @cached_property
    def _texts(self) -> TextTower:
        from imageprompt.encoding.text_encoder import open_text_encoder

        tower = open_text_encoder(self._place, self.encoder)
        tower.model.to(self.encoder.model.device)
        return tower

    def encode_text(self, texts: Sequence[str]) -> Rows:
        """Warns about texts that are truncated."""
        rows: Rows = self._texts.embed(texts).float().cpu().numpy()
        return rows


def own_encoder(device: str | None, feature: ImageFeature = "image_embeds") -> Tower:
    """The bundled stack's image encoder. It conditions the stack's own adapters."""
    return Tower(OWN, open_vision(str(bundled.folder() / "image_encoder"), device), feature)


def open_vision(place: str, device: str | None) -> VisionEncoder:
    """The vision model of a folder or Hub id. Raises NotFoundError, EncoderError."""
    encoder = open_encoder(place, device=device)
    assert isinstance(encoder, VisionEncoder)  # every kind is one, for a place
    return encoder


def tower_name(role: str, source: Source, encoder: VisionEncoder) -> str:
    """The name for results.

    Raises EncoderError for a model that was never trained, unless the source takes any.
    """
    untrained = is_untrained(encoder.model)
    if untrained:
        source.check(role, "never trained: each normalisation layer is as it was made")
    return source.name(verified=not untrained)


def described(processor: Any) -> str:
    """What an image processor does, in words."""
    size, crop = processor.size, getattr(processor, "crop_size", None)
    short = _get(size, "shortest_edge")
    steps = []
    if getattr(processor, "do_resize", True):
        goal = f"shorter side {short}" if short else f"{_square(size)}, aspect ratio not kept"
        name = _FILTERS[int(processor.resample)]
        steps.append(f"{goal}, {name} with antialiasing, clamped and rounded to 8 bits")
    if getattr(processor, "do_center_crop", False) and crop:
        steps.append(f"centre crop {_square(crop)}")
    if getattr(processor, "do_normalize", True):
        mean, deviation = (
            " ".join(f"{value:.4g}" for value in values)
            for values in (processor.image_mean, processor.image_std)
        )
        steps.append(f"mean {mean}, standard deviation {deviation}")
    return "; ".join(steps)


def _square(size: Any) -> str:
    return f"{_get(size, 'height')}x{_get(size, 'width')}"


def _get(size: Any, name: str) -> Any:
    return size.get(name) if hasattr(size, "get") else getattr(size, name, None)
