"""DINO and its kind: what an encoder sees that never read texts."""

from __future__ import annotations

from imageprompt.evaluation.extractors.contract import Backbone

RESIZED, CROPPED = 256, 224
"""Pixels: the shorter side, and of the square that is cut from its middle."""
_CLASS_TOKEN_FIRST = ("vit", "dinov2", "dinov2_with_registers")
"""Model types whose last normalisation is that of `last_hidden_state`, read as DINO was."""


class DinoRole:
    """The class token after the last normalisation; for other encoders what they pool."""

    name = "dino"
    summary = (
        "a DINO, or any other image encoder, by folder or Hub id; usual: facebook/dino-vits16, "
        "facebook/dinov2-small; default: own encoder"
    )

    def open(self, source: str | None, *, device: str | None = None) -> Backbone:
        from imageprompt.evaluation.extractors import _tower
        from imageprompt.evaluation.extractors._weights import Source

        if source is None:
            return _tower.own_encoder(device, "pooler_output")
        stated = Source.of(source)
        encoder = _tower.open_vision(stated.place, device)
        name = _tower.tower_name(self.name, stated, encoder)
        if encoder.model_type not in _CLASS_TOKEN_FIRST:
            return _tower.Tower(name, encoder, "pooler_output")
        encoder.processor = dino_processor(int(encoder.model.config.image_size))
        return _tower.Tower(name, encoder, "last_hidden_state")


def dino_processor(image_size: int) -> object:
    """Of the published evaluations; a smaller model reads its own size in the same proportions."""
    from transformers import BitImageProcessorPil

    from imageprompt.encoding.encoders._folder import IMAGENET

    side = min(image_size, CROPPED)
    return BitImageProcessorPil(
        size={"shortest_edge": side * RESIZED // CROPPED},
        crop_size={"height": side, "width": side},
        **IMAGENET,
    )


EXTRACTOR = DinoRole()
