"""Look: how much of the reference's colour, texture and background a picture has, by the judge."""

from __future__ import annotations

from imageprompt.evaluation.metrics._words import share_of
from imageprompt.evaluation.metrics.contract import FeatureMetric

METRIC = FeatureMetric(
    name="look",
    title="look kept",
    summary="share of colour, texture and background kept: style; drawn scenes only",
    formula="share of these three words that the judge reads alike in picture and reference",
    source="the judge of the bundled stack",
    higher_is_better=True,
    range=(0, 1),
    extractor="judge",
    compare=share_of("colour", "texture", "background"),
)
