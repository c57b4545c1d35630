"""Copying: is a picture a copy of its reference?"""

from __future__ import annotations

from imageprompt.evaluation.metrics.contract import FeatureMetric, cosine

METRIC = FeatureMetric(
    name="copying",
    title="copying",
    summary="is it the same picture? to SSCD, above 0.5 related, above 0.7 a copy",
    formula="cosine of copy-detection features; of pHash 1 - 2d/64, d bits differ",
    source="SSCD, arXiv 2202.10261; without its weights pHash, which misses mirrored copies",
    higher_is_better=False,
    range=(-1, 1),
    extractor="copy",
    compare=cosine,
)
