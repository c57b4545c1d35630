"""Attributes: how many of the reference's five attributes a picture has, by the bundled judge."""

from __future__ import annotations

import numpy as np

from imageprompt.evaluation.metrics.contract import FeatureMetric, Rows, Values


def attributes(pictures: Rows, references: Rows) -> Values:
    """Share of equal words in rows [n, 5]; NaN beside a picture that could not be read."""
    unread = np.isnan(pictures).any(1) | np.isnan(references).any(1)
    values: Values = np.where(unread, np.nan, (pictures == references).mean(1))
    return values


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
