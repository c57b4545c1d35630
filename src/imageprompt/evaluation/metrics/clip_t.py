"""CLIP-T: how well a picture fits its text, to a CLIP."""

from __future__ import annotations

from imageprompt.evaluation.metrics.contract import TextMetric, cosine

METRIC = TextMetric(
    name="clip-t",
    title="CLIP-T",
    summary="fit of picture and text; others print 100 times this, or 2.5 times (CLIPScore)",
    formula="cosine of the image and the text embedding: not clamped, not scaled, no prefix",
    source="IP-Adapter, arXiv 2308.06721, section 4.2",
    higher_is_better=True,
    range=(-1, 1),
    extractor="clip",
    compare=cosine,
)
