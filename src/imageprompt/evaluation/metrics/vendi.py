"""Vendi score: how many different pictures a set holds in effect."""

from __future__ import annotations

import numpy as np

from imageprompt.evaluation.metrics._blocks import blocks
from imageprompt.evaluation.metrics.contract import Rows, SetMetric, unit


def vendi(rows: Rows) -> float:
    """From 1 (all alike) to n. The eigenvalues are those of the smaller of XᵀX and XXᵀ."""
    count, width = rows.shape
    if count < width:
        whole = unit(rows)
        similarity = whole @ whole.T
    else:
        similarity = np.zeros((width, width))
        for part in blocks(count):
            some = unit(rows[part])
            similarity += some.T @ some
    shares = np.linalg.eigvalsh(similarity / count)
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


METRIC = SetMetric(
    name="vendi",
    title="Vendi score",
    summary="how many different pictures there are in effect; compare equal n only",
    formula="exp of the entropy of the eigenvalues of the cosine matrix / n",
    source="Friedman and Dieng, arXiv 2210.02410",
    higher_is_better=True,
    range=(1, None),
    extractor="clip",
    measure=vendi,
)
