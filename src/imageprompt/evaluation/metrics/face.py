"""Face: how like the reference's face the face of a picture is."""

from __future__ import annotations

from imageprompt.evaluation.metrics.contract import FeatureMetric, cosine

METRIC = FeatureMetric(
    name="face",
    title="face",
    summary="likeness of the largest faces; take another recogniser than the adapter reads",
    formula="cosine of the ArcFace embeddings; no value without a face",
    source="ArcFace, arXiv 1801.07698",
    higher_is_better=True,
    range=(-1, 1),
    extractor="face",
    compare=cosine,
    missing="no face was found in it or in its reference",
)
