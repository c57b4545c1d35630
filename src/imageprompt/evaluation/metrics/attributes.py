"""Attributes: how many of the reference's five attributes a picture has, by the bundled judge."""

from __future__ import annotations

from imageprompt.demo.scenes import ATTRIBUTES
from imageprompt.evaluation.metrics._words import share_of
from imageprompt.evaluation.metrics.contract import FeatureMetric

attributes = share_of(*ATTRIBUTES)
"""Of rows [n, 5]."""

METRIC = FeatureMetric(
    name="attributes",
    title="attributes kept",
    summary="share of shape, colour, texture, background and style kept; drawn scenes only",
    formula="share of the five words that the judge reads alike in picture and reference",
    source="the judge of the bundled stack",
    higher_is_better=True,
    range=(0, 1),
    extractor="judge",
    compare=attributes,
)
