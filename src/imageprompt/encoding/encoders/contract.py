"""The interface of an image encoder, and how callers choose a face."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from imageprompt.core.errors import OptionError
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
