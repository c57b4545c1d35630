"""CMMD: how far apart two sets of pictures are to a CLIP."""

from __future__ import annotations

import numpy as np

from imageprompt.evaluation.metrics._blocks import mean_kernel, mean_kernel_within
from imageprompt.evaluation.metrics.contract import Matrix, Rows, TwoSetMetric, unit

BANDWIDTH = 10.0


def cmmd(pictures: Rows, references: Rows) -> float:
    """The V-statistic, 1000 times."""
    within = 0.0
    for rows in (pictures, references):
        apart, alike = mean_kernel_within(rows, _kernel, unit)
        within += apart + (alike - apart) / len(rows)
    return 1000 * (within - 2 * mean_kernel(pictures, references, _kernel, unit))


def _kernel(products: Matrix) -> Matrix:
    """Gaussian kernel of unit vectors by their inner products."""
    kernel: Matrix = np.exp((products - 1) / BANDWIDTH**2)
    return kernel


METRIC = TwoSetMetric(
    name="cmmd",
    title="CMMD",
    summary="distance of two sets to a CLIP; biased upwards by about 1 / n",
    formula="1000 · squared MMD (V-statistic) of unit embeddings, Gaussian kernel, σ 10",
    source="Jayasumana et al., arXiv 2401.09603",
    higher_is_better=False,
    range=(0, None),
    extractor="clip",
    measure=cmmd,
)
