"""What a feature extractor is: pictures, and for some also texts, to one row each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from PIL.Image import Image

    from imageprompt.evaluation.metrics.contract import Pixels, Rows


class Backbone(Protocol):
    """A frozen model with its preprocessing, as the results name it."""

    @property
    def name(self) -> str:
        """What the user called it, such as a folder or Hub id; "own encoder" for the bundled.

        Weights that are random or that nobody published say so here, beside every figure.
        """

    @property
    def fingerprint(self) -> str:
        """Short hash of the weights and of the preprocessing."""

    @property
    def preprocessing(self) -> str:
        """Size, filter, antialiasing, crop, normalisation: one line for reports."""


@runtime_checkable
class Extractor(Backbone, Protocol):
    """A backbone that describes each picture by itself."""

    @property
    def width(self) -> int:
        """Values in a row."""

    def encode(self, pictures: Sequence[Image]) -> Rows:
        """n RGB pictures -> features [n, width]; a row of NaN where there is nothing to see."""


@runtime_checkable
class TextExtractor(Extractor, Protocol):
    """An extractor that has a space for texts as well."""

    def encode_text(self, texts: Sequence[str]) -> Rows:
        """n texts -> features [n, width], comparable with those of pictures."""


@runtime_checkable
class PairBackbone(Backbone, Protocol):
    """A backbone that compares pictures at every position, too much to keep as a row."""

    def distance(self, picture: Pixels, reference: Pixels) -> float:
        """0 for equal pictures of one size [h, w, 3]."""


class ExtractorRole(Protocol):
    """A part that a backbone plays in metrics, such as `clip`; one file for each."""

    @property
    def name(self) -> str: ...

    @property
    def summary(self) -> str:
        """Which models can play it, and which are usual."""

    def open(self, source: str | None, *, device: str | None = None) -> Backbone:
        """The backbone at a folder, file or Hub id; None opens the default one.

        Weights that are random or that nobody published are taken from "unverified:" + source only,
        and their name says so. Raises EncoderError for those without it, and if there is no
        default; NotFoundError.
        """
