"""What every image encoder states; the protocols of the files beside this one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from imageprompt.core.spec import ImageFeature

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


@runtime_checkable
class Encoder(Protocol):
    """A frozen picture encoder with its preparation."""

    @property
    def image_size(self) -> int:
        """Side of the square that pictures are prepared to, in pixels."""

    @property
    def fingerprint(self) -> str:
        """Short hash of the weights."""

    def width(self, feature: ImageFeature) -> int:
        """Last dimension of a feature. Raises EncoderError for one that it does not make."""

    def encode(self, pictures: Sequence[Image], feature: ImageFeature) -> Tensor:
        """[n, F] or [n, L, F] of n RGB pictures."""

    def encode_null(self, feature: ImageFeature) -> Tensor:
        """The same of a pixel tensor that is zero after normalisation, [1, ...]."""


@runtime_checkable
class PixelEncoder(Encoder, Protocol):
    """An encoder whose pixels can be had and changed: what a mask on the reference needs."""

    def preprocess(self, pictures: Sequence[Image]) -> Tensor:
        """RGB pictures -> normalised pixels [n, 3, S, S]."""

    def encode_pixels(self, pixels: Tensor, feature: ImageFeature) -> Tensor:
        """Normalised pixels [n, 3, S, S] -> features, as `encode` makes them."""


class EncoderKind(Protocol):
    """How a kind of encoder is recognised and opened."""

    @property
    def name(self) -> str: ...

    @property
    def summary(self) -> str: ...

    def claims(self, source: object) -> bool:
        """Can `load` open this?"""

    def load(self, source: object) -> Encoder:
        """Open it. Raises EncoderError."""
