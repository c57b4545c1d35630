"""Inception's classes, for the Inception score."""

from __future__ import annotations

from imageprompt.core.errors import EncoderError
from imageprompt.evaluation.extractors.contract import Backbone


class InceptionLogitsRole:
    """The 1008 logits of FID's Inception, without their bias, as TensorFlow's graph has them."""

    name = "inception-logits"
    summary = "FID's Inception, pt_inception-2015-12-05-6726825d.pth; no default"

    def open(self, source: str | None, *, device: str | None = None) -> Backbone:
        if source is None:
            raise EncoderError(
                "the classes of Inception",
                reason="they need its weights, which are not part of this package",
                hint=f"Give them: --extractor {self.name}=pt_inception-2015-12-05-6726825d.pth",
            )
        from imageprompt.evaluation.extractors._inception import Inception

        return Inception(self.name, source, "logits", device)


EXTRACTOR = InceptionLogitsRole()
