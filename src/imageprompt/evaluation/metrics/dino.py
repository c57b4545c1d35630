"""DINO: how like its reference a picture is to an encoder that never read texts."""

from __future__ import annotations

from imageprompt.evaluation.metrics.contract import FeatureMetric, cosine

METRIC = FeatureMetric(
    name="dino",
    title="DINO",
    summary="likeness of the object; two photographs of one object reach about 0.77",
    formula="cosine of the class tokens after the last normalisation",
    source="DreamBooth, arXiv 2208.12242, section 4.2",
    higher_is_better=True,
    range=(-1, 1),
    extractor="dino",
    compare=cosine,
)
