"""One file an image encoder: pictures to features; and pictures.py, which opens pictures safely.

A file in this folder that ends in a constant `ENCODER` is a kind of encoder.
"""

from __future__ import annotations

from imageprompt.core.errors import EncoderError
from imageprompt.core.registry import Registry
from imageprompt.encoding.encoders.contract import Encoder, EncoderKind

ENCODERS: Registry[EncoderKind] = Registry(__name__, "ENCODER")

__all__ = ["ENCODERS", "Encoder", "EncoderKind", "open_encoder"]


def open_encoder(source: object) -> Encoder:
    """An encoder from whatever a user has: one of ours, a model of transformers, or a folder.

    Raises EncoderError when no kind of encoder knows the source.
    """
    if isinstance(source, Encoder):
        return source
    for kind in ENCODERS:
        if kind.claims(source):
            return kind.load(source)
    raise EncoderError(
        f"encoder {source if isinstance(source, str) else type(source).__name__!r}",
        reason="not an image encoder",
        hint=f"Give one of: {'; '.join(kind.summary for kind in ENCODERS)}.",
    )
