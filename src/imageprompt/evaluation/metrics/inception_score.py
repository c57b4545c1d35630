"""Inception score: how certain and how varied the classes of a set are. Of no use for adapters."""

from __future__ import annotations

import numpy as np

from imageprompt.evaluation.metrics.contract import Rows, SetMetric


def inception_score(logits: Rows) -> float:
    """Over the whole set: no splits."""
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    logarithms = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    chances = np.exp(logarithms)
    overall = np.log(chances.mean(0))
    return float(np.exp((chances * (logarithms - overall)).sum(1).mean()))


METRIC = SetMetric(
    name="inception-score",
    title="Inception score",
    summary="certain and varied classes of ImageNet; says nothing about references or texts",
    formula="exp of the mean KL divergence of each picture's classes from those of all; 1 split",
    source="Salimans et al., arXiv 1606.03498",
    higher_is_better=True,
    range=(1, None),
    extractor="inception-logits",
    measure=inception_score,
    min_count=2,
    steady_count=1000,
)
