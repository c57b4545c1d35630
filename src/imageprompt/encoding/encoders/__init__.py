"""Image encoders, one file each: a module that ends in a constant `ENCODER` is one kind."""

from __future__ import annotations

import os
from typing import Any

from imageprompt.core.errors import EncoderError
from imageprompt.core.hub import locate_folder
from imageprompt.core.registry import Registry
from imageprompt.encoding.encoders.contract import Encoder, EncoderKind, VisionKind

ENCODERS: Registry[EncoderKind] = Registry(__name__, "ENCODER")

__all__ = ["ENCODERS", "Encoder", "EncoderKind", "open_encoder", "own_encoder"]


def open_encoder(source: object, **placement: Any) -> Encoder:
    """Open an encoder: one of ours, a transformers model, a folder or a Hub id.

    `placement` is the `device` and the `dtype` of a model from a folder. Raises NotFoundError, and
    EncoderError if no kind of encoder claims the source.
    """
    if isinstance(source, Encoder):
        return source
    what = source if isinstance(source, str | os.PathLike) else type(source).__name__
    if isinstance(source, str | os.PathLike):
        source = locate_folder(source)
    for kind in ENCODERS:
        if kind.claims(source):
            return kind.load(source, **placement)
    raise EncoderError(
        f"encoder {str(what)!r}",
        reason=_reason(source),
        hint=f"Give one of these: {'; '.join(kind.summary for kind in ENCODERS)}.",
    )


def own_encoder(pipe: Any) -> Encoder:
    """The image encoder that is part of a pipeline, with its processor. Raises EncoderError."""
    model, processor = pipe.image_encoder, getattr(pipe, "feature_extractor", None)
    for kind in ENCODERS:
        if isinstance(kind, VisionKind) and kind.claims(model):
            return kind.encoder(model, processor)
    return open_encoder(model)


def _reason(source: object) -> str:
    if not isinstance(source, os.PathLike):
        return "not an image encoder"
    from imageprompt.encoding.encoders._folder import stated_type

    return f"its config.json says {stated_type(source) or 'no model_type'}: not an image encoder"
