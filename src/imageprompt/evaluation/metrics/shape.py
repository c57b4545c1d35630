"""Shape: whether a picture has the shape of its reference, by the bundled judge."""

from __future__ import annotations

from imageprompt.evaluation.metrics._words import share_of
from imageprompt.evaluation.metrics.contract import FeatureMetric

METRIC = FeatureMetric(
    name="shape",
    title="shape kept",
    summary="share of pictures with the shape of the reference: content; drawn scenes only",
    formula="1 where the judge reads the same shape in picture and reference, else 0",
    source="the judge of the bundled stack",
    higher_is_better=True,
    range=(0, 1),
    extractor="judge",
    compare=share_of("shape"),
)
