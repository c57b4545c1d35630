"""CLIP-I: how like its reference a picture is to a CLIP image encoder."""

from __future__ import annotations

from imageprompt.evaluation.metrics.contract import FeatureMetric, cosine

METRIC = FeatureMetric(
    name="clip-i",
    title="CLIP-I",
    summary="likeness to the reference; an adapter that is conditioned by a CLIP needs another one",
    formula="cosine of the projected image embeddings",
    source="IP-Adapter, arXiv 2308.06721, section 4.2",
    higher_is_better=True,
    range=(-1, 1),
    extractor="clip",
    compare=cosine,
)
