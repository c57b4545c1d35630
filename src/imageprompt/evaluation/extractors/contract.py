"""What a feature extractor is: pictures, and for some also texts, to one row each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from PIL.Image import Image

    from imageprompt.evaluation.metrics.contract import Rows


class Extractor(Protocol):
    """A frozen model with its preprocessing."""

    @property
    def name(self) -> str:
        """What the user called it, such as a folder or Hub id; "own encoder" for the bundled."""

    @property
    def fingerprint(self) -> str:
        """Short hash of the weights and of the preprocessing."""

    @property
    def preprocessing(self) -> str:
        """Size, filter, antialiasing, crop, normalisation: one line for reports."""

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


class ExtractorRole(Protocol):
    """A part that an extractor plays in metrics, such as `clip`; one file for each."""

    @property
    def name(self) -> str: ...

    @property
    def summary(self) -> str:
        """Which models can play it, and which are usual."""

    def open(self, source: str | None, *, device: str | None = None) -> Extractor:
        """The extractor at a folder, file or Hub id; None opens the default one.

        Raises EncoderError if there is no default, NotFoundError.
        """
