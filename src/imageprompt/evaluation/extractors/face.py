"""Faces: who a picture shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from imageprompt.core.errors import EncoderError
from imageprompt.evaluation.extractors._weights import Source, identity
from imageprompt.evaluation.extractors.contract import Backbone

if TYPE_CHECKING:
    from PIL.Image import Image

    from imageprompt.encoding.face_encoder import FaceEncoder
    from imageprompt.evaluation.metrics.contract import Rows


class FaceRole:
    """The embedding of the largest face."""

    name = "face"
    summary = "insightface's model pack by folder or name, such as antelopev2; no default"

    def open(self, source: str | None, *, device: str | None = None) -> Backbone:
        if source is None:
            raise EncoderError(
                "the face metric",
                reason="it needs a face recogniser, which is not part of this package",
                hint="Give another pack than the adapter reads: --extractor face=antelopev2",
            )
        from imageprompt.encoding.face_encoder import FaceEncoder

        stated = Source.of(source)
        name = stated.name(verified=not stated.unverified)
        return Faces(name, FaceEncoder.load(stated.place))


class Faces:
    """Pictures -> the ArcFace embedding of the largest face; NaN where no face is found."""

    preprocessing = (
        "largest face, upright by five points in 112x112, bilinear; a picture without a face is "
        "tried once more with a black border"
    )

    def __init__(self, name: str, encoder: FaceEncoder) -> None:
        from imageprompt.variants.tensor_shapes import FACE_DIM

        self.name, self._encoder, self.width = name, encoder, FACE_DIM
        self.fingerprint = identity(encoder.fingerprint, self.preprocessing)

    def encode(self, pictures: Sequence[Image]) -> Rows:
        rows = np.full((len(pictures), self.width), np.nan, np.float32)
        for row, picture in zip(rows, pictures, strict=True):
            faces = self._encoder.find(picture)
            if faces:
                row[:] = faces[0].embedding.numpy()
        return rows


EXTRACTOR = FaceRole()
