"""The interface of an image encoder, what transformers' models share, and the choice of a face."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, runtime_checkable

from imageprompt.core.errors import EncoderError, OptionError
from imageprompt.core.spec import ImageFeature

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

LARGEST, ALL = "largest", "all"
FaceChoice = str | int
"""Which faces of a picture to use: "largest", "all", or one by its index (0 is the largest)."""


def check_face_choice(face: object) -> None:
    """Raises OptionError for anything that is not a FaceChoice."""
    known = face in (LARGEST, ALL) if isinstance(face, str) else type(face) is int and face >= 0
    if not known:
        raise OptionError(
            f"face {face!r}",
            reason="not 'largest', 'all' or the index of a face (0 is the largest)",
        )


@runtime_checkable
class Encoder(Protocol):
    """A frozen image encoder with its preprocessing."""

    @property
    def image_size(self) -> int:
        """Side in pixels of the square that it reads."""

    @property
    def fingerprint(self) -> str:
        """Short hash of the weights."""

    def width(self, feature: ImageFeature) -> int:
        """Last dimension of a feature. Raises EncoderError for one that it does not make."""

    def encode(self, pictures: Sequence[Image], feature: ImageFeature) -> Tensor:
        """n RGB pictures -> features [n, F] or [n, L, F]."""

    def encode_null(self, feature: ImageFeature) -> Tensor:
        """Features [1, ...] of pixels that are zero after normalisation."""


@runtime_checkable
class PixelEncoder(Encoder, Protocol):
    """An encoder that gives access to its pixels, as a mask on the reference needs."""

    def preprocess(self, pictures: Sequence[Image]) -> Tensor:
        """RGB pictures -> normalised pixels [n, 3, S, S]."""

    def encode_pixels(self, pixels: Tensor, feature: ImageFeature) -> Tensor:
        """Normalised pixels [n, 3, S, S] -> features, as `encode` makes them."""


class VisionEncoder:
    """A vision model of transformers with its preprocessing; every file for one is a subclass.

    `model` is one of `classes`, or a model that has one as its `vision_model`; `processor` is an
    image processor of transformers that makes squares (default: the published one of the family,
    at the model's size). The model is put into eval mode and runs without gradients.
    """

    family: ClassVar[str]
    """What people call it."""
    classes: ClassVar[Mapping[str, str]]
    """`model_type` in config.json -> the class of transformers that is the vision part."""

    def __init__(self, model: Any, processor: Any = None) -> None:
        inner = getattr(model, "vision_model", None)
        is_tower = type(model).__name__ in self.classes.values()
        self.model = (model if is_tower or inner is None else inner).eval()
        self.processor = processor or self.default_processor(self.model.config)

    @classmethod
    def load(cls, source: str | os.PathLike[str], *, device: Any = None, dtype: Any = None) -> Self:
        """Load a folder in transformers' layout, or `owner/repo/sub/folder` from the Hub.

        Of a model with a text tower as well, only the vision part. Raises NotFoundError,
        EncoderError.
        """
        from imageprompt.encoding.encoders._folder import load_vision_model

        return cls(*load_vision_model(cls, source, device=device, dtype=dtype))

    @staticmethod
    def default_processor(config: Any) -> Any:
        """The image processor for a model of this config that comes without one."""
        raise NotImplementedError

    @property
    def model_type(self) -> str:
        """The `model_type` of the vision part."""
        return str(self.model.config.model_type)

    @property
    def image_size(self) -> int:
        return int(self.model.config.image_size)

    @property
    def hidden_width(self) -> int:
        """Width of the patch features."""
        return int(self.model.config.hidden_size)

    @property
    def widths(self) -> dict[ImageFeature, int]:
        """The features that it makes, and how wide they are."""
        hidden = self.hidden_width
        pooled: dict[ImageFeature, int] = {"pooler_output": hidden} if self.has_pooler else {}
        return {**pooled, "hidden_states[-2]": hidden, "last_hidden_state": hidden}

    @property
    def has_pooler(self) -> bool:
        return True

    def width(self, feature: ImageFeature) -> int:
        widths = self.widths
        if feature not in widths:
            raise EncoderError(
                f"a {self.family} image encoder",
                reason=f"makes {', '.join(widths)}, not {feature}",
                hint="Name one of these as the feature of a new adapter, or use another encoder.",
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

    def encode_pixels(self, pixels: Tensor, feature: ImageFeature) -> Tensor:
        """Normalised pixels [n, 3, S, S] -> features. Raises EncoderError for one it lacks."""
        import torch

        self.width(feature)
        with torch.no_grad():
            return self.feature_of(pixels, feature)

    def feature_of(self, pixels: Tensor, feature: ImageFeature) -> Tensor:
        """The same without checks."""
        if feature == "hidden_states[-2]":
            return self.model(pixels, output_hidden_states=True).hidden_states[-2]  # type: ignore[no-any-return]
        return getattr(self.model(pixels), feature)  # type: ignore[no-any-return]


def pooled_feature(encoder: Encoder) -> ImageFeature | None:
    """The vector that stands for a whole picture, to compare pictures by; None without one."""
    pooled: tuple[ImageFeature, ...] = ("image_embeds", "pooler_output")
    for feature in pooled:
        try:
            encoder.width(feature)
        except EncoderError:
            continue
        return feature
    return None


class EncoderKind(Protocol):
    """How a kind of encoder is recognised and opened."""

    @property
    def name(self) -> str: ...

    @property
    def summary(self) -> str: ...

    def claims(self, source: object) -> bool:
        """Can `load` open this?"""

    def load(self, source: object) -> Encoder:
        """Raises EncoderError, NotFoundError."""


class VisionKind:
    """The kind of a VisionEncoder: models, folders and Hub ids of its model types."""

    def __init__(self, name: str, encoder: type[VisionEncoder]) -> None:
        self.name, self.encoder = name, encoder
        self.summary = f"{encoder.family} ({', '.join(dict.fromkeys(encoder.classes.values()))})"

    def claims(self, source: object) -> bool:
        if isinstance(source, str | os.PathLike):
            from imageprompt.encoding.encoders._folder import stated_type

            return stated_type(source) in self.encoder.classes
        names = self.encoder.classes.values()
        parts = (source, getattr(source, "vision_model", None))
        return any(type(part).__name__ in names for part in parts)

    def load(self, source: Any, *, device: Any = None, dtype: Any = None) -> VisionEncoder:
        if isinstance(source, str | os.PathLike):
            return self.encoder.load(source, device=device, dtype=dtype)
        return self.encoder(source)
