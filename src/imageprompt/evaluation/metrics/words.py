"""Words: how many of the attributes that its text names a picture has, by the bundled judge."""

from __future__ import annotations

import numpy as np

from imageprompt.evaluation.metrics.contract import Rows, TextMetric, Values


def words(pictures: Rows, texts: Rows) -> Values:
    """Share of equal words among those named, rows [n, 5]; -1 stands for an attribute not named.

    NaN where the text names none, and for a picture that could not be read.
    """
    named = texts >= 0
    right = ((pictures == texts) & named).sum(1).astype(np.float64)
    with np.errstate(invalid="ignore"):
        share = right / named.sum(1)
    values: Values = np.where(np.isnan(pictures).any(1), np.nan, share)
    return values


METRIC = TextMetric(
    name="words",
    title="words obeyed",
    summary="share of what the text names that is in the picture; drawn scenes only",
    formula="share of the named words that the judge reads in the picture; none without names",
    source="the judge of the bundled stack",
    higher_is_better=True,
    range=(0, 1),
    extractor="judge",
    compare=words,
    missing="its text names no attribute that the judge knows",
)
