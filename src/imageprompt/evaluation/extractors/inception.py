"""Inception: pooled features, for distances of sets."""

from __future__ import annotations

from imageprompt.evaluation.extractors.contract import Backbone


class InceptionRole:
    """The network that FID and KID are defined by."""

    name = "inception"
    summary = (
        "FID's Inception, pt_inception-2015-12-05-6726825d.pth (torchvision's inception_v3 is "
        "another network); default: own encoder, whose figures compare with no published ones"
    )

    def open(self, source: str | None, *, device: str | None = None) -> Backbone:
        if source is None:
            from imageprompt.evaluation.extractors._tower import own_encoder

            return own_encoder(device)
        from imageprompt.evaluation.extractors._inception import Inception

        return Inception(self.name, source, "pool3", device)


EXTRACTOR = InceptionRole()
