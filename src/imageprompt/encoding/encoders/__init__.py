"""Image encoders, one file each: a module that ends in a constant `ENCODER` is one kind."""

from __future__ import annotations

from imageprompt.core.errors import EncoderError
from imageprompt.core.registry import Registry
from imageprompt.encoding.encoders.contract import Encoder, EncoderKind

ENCODERS: Registry[EncoderKind] = Registry(__name__, "ENCODER")

__all__ = ["ENCODERS", "Encoder", "EncoderKind", "open_encoder"]


def open_encoder(source: object) -> Encoder:
    """Open an encoder: one of ours, a transformers model, a folder or a Hub id.

    Raises EncoderError if no kind of encoder claims the source.
    """
    if isinstance(source, Encoder):
        return source
    for kind in ENCODERS:
        if kind.claims(source):
            return kind.load(source)
    raise EncoderError(
        f"encoder {source if isinstance(source, str) else type(source).__name__!r}",
        reason="not an image encoder",
        hint=f"Give one of these: {'; '.join(kind.summary for kind in ENCODERS)}.",
    )
