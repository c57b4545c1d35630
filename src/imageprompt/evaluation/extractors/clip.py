"""CLIP and its kind: pictures, and where the model has a text tower texts, in one space."""

from __future__ import annotations

from imageprompt.core.errors import EncoderError
from imageprompt.evaluation.extractors.contract import Backbone


class ClipRole:
    """The projected image embedding, or what another encoder pools."""

    name = "clip"
    summary = (
        "a CLIP, or any other image encoder, by folder or Hub id; usual: "
        "openai/clip-vit-large-patch14; texts need a CLIP with both towers; default: own encoder"
    )

    def open(self, source: str | None, *, device: str | None = None) -> Backbone:
        from imageprompt.encoding.encoders._folder import stated_type
        from imageprompt.encoding.encoders.contract import pooled_feature
        from imageprompt.evaluation.extractors import _tower
        from imageprompt.evaluation.extractors._weights import Source

        if source is None:
            return _tower.own_encoder(device)
        stated = Source.of(source)
        encoder = _tower.open_vision(stated.place, device)
        name, feature = _tower.tower_name(self.name, stated, encoder), pooled_feature(encoder)
        if feature is None:
            raise EncoderError(
                f"clip extractor {source!r}",
                reason="it makes no pooled feature",
                hint="Give a model with a pooler, such as openai/clip-vit-large-patch14.",
            )
        if stated_type(stated.place) == "clip":
            return _tower.TwoTowers(name, encoder, stated.place)
        return _tower.Tower(name, encoder, feature)


EXTRACTOR = ClipRole()
