"""CSD: how alike the styles of two pictures are."""

from __future__ import annotations

from imageprompt.evaluation.metrics.contract import FeatureMetric, cosine

METRIC = FeatureMetric(
    name="csd",
    title="CSD style",
    summary="likeness of the style; read it beside that of other styles, there is no threshold",
    formula="cosine of the style embeddings",
    source="Somepalli et al., arXiv 2404.01292",
    higher_is_better=True,
    range=(-1, 1),
    extractor="csd",
    compare=cosine,
)
