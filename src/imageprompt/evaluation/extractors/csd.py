"""CSD: the style of a picture."""

from __future__ import annotations

from imageprompt.core.errors import EncoderError
from imageprompt.evaluation.extractors.contract import Backbone


class CsdRole:
    """The style head on a CLIP ViT-L/14 that was fitted to tell styles."""

    name = "csd"
    summary = "pytorch_model.bin of tomg-group-umd/CSD-ViT-L, 2.4 GB; no default"

    def open(self, source: str | None, *, device: str | None = None) -> Backbone:
        if source is None:
            raise EncoderError(
                "the style metric",
                reason="it needs CSD's weights, which are not part of this package",
                hint="Give them: --extractor csd=tomg-group-umd/CSD-ViT-L/pytorch_model.bin; the "
                "metric lab needs no weights.",
            )
        from imageprompt.evaluation.extractors._csd import open_csd

        return open_csd(source, device)


EXTRACTOR = CsdRole()
