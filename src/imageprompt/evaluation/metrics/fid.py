"""FID: how far apart two sets of pictures are, as normal distributions of their features."""

from __future__ import annotations

import numpy as np

from imageprompt.evaluation.metrics._blocks import blocks
from imageprompt.evaluation.metrics.contract import Matrix, Rows, TwoSetMetric


def fid(pictures: Rows, references: Rows) -> float:
    """Fréchet distance of the means and covariances (n - 1)."""
    mean_a, factor_a = _moments(pictures)
    mean_b, factor_b = _moments(references)
    # the trace of the root of the product of the covariances, without forming either of them
    shared = np.linalg.svd(factor_a @ factor_b.T, compute_uv=False).sum()
    spread = np.square(factor_a).sum() + np.square(factor_b).sum() - 2 * shared
    return float(np.square(mean_a - mean_b).sum() + max(spread, 0.0))


def _moments(rows: Rows) -> tuple[Matrix, Matrix]:
    """Mean [d], and a factor F [at most d, d] of the covariance, which is FᵀF."""
    mean: Matrix = rows.mean(0, dtype=np.float64)
    factor: Matrix = np.zeros((0, rows.shape[1]))
    for part in blocks(len(rows)):
        factor = np.asarray(np.linalg.qr(np.vstack([factor, rows[part] - mean]), mode="r"))
    return mean, factor / np.sqrt(len(rows) - 1)


METRIC = TwoSetMetric(
    name="fid",
    title="FID",
    summary="distance of two sets; biased by about width / n, so compare equal n only, or use KID",
    formula="|μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2 (Σ₁Σ₂)^½), float64",
    source="Heusel et al., arXiv 1706.08500",
    higher_is_better=False,
    range=(0, None),
    extractor="inception",
    measure=fid,
    min_count=2,
    steady_count=2048,
)
