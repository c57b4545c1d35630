"""Pooled embeddings by which styles are compared: of pictures, and of words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from imageprompt.core.errors import EncoderError
from imageprompt.encoding.encoders import Encoder, open_encoder
from imageprompt.encoding.images.open_image import open_picture

if TYPE_CHECKING:
    from PIL import Image

    from imageprompt.encoding.images.open_image import PictureSource


def pooled(pictures: Sequence[Image.Image], encoder: Encoder | None) -> Tensor | None:
    """[n, E], prepared as the encoder does by itself; None where it makes no such thing."""
    if encoder is None or not pictures:
        return None
    try:
        encoder.width("image_embeds")
    except EncoderError:
        return None
    return encoder.encode(list(pictures), "image_embeds")


def of_picture(picture: PictureSource, encoder: Any) -> tuple[Tensor, str]:
    """[1, E], and the encoder's fingerprint. Raises PictureError, EncoderError."""
    opened = _encoder(encoder)
    rows = pooled([open_picture(picture)], opened)
    if rows is None:
        raise EncoderError(
            "search by picture",
            reason="this encoder makes no pooled embedding",
            hint="Search for names and tags.",
        )
    return rows, opened.fingerprint


def of_words(text: str, text_encoder: Any, encoder: Any) -> tuple[Tensor, str]:
    """[1, E] in the image encoder's space, and that encoder's fingerprint. Raises EncoderError."""
    from imageprompt.encoding.text_encoder import open_text_encoder

    opened = _encoder(encoder)
    return open_text_encoder(text_encoder, opened).embed([text]), opened.fingerprint


def _encoder(encoder: Any) -> Encoder:
    if encoder is None:
        raise EncoderError(
            "search by what pictures show",
            reason="it takes the image encoder that the styles were made with",
            hint="Give it: --encoder, encoder= in Python.",
        )
    return open_encoder(encoder)
