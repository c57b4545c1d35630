"""KID: how far apart two sets of pictures are, without a bias at small n."""

from __future__ import annotations

from imageprompt.evaluation.metrics._blocks import mean_kernel, mean_kernel_within
from imageprompt.evaluation.metrics.contract import Matrix, Rows, TwoSetMetric


def kid(pictures: Rows, references: Rows) -> float:
    """The U-statistic over whole sets; may be negative."""
    width = pictures.shape[1]

    def kernel(products: Matrix) -> Matrix:
        cubed: Matrix = (products / width + 1) ** 3
        return cubed

    within = sum(mean_kernel_within(rows, kernel)[0] for rows in (pictures, references))
    return within - 2 * mean_kernel(pictures, references, kernel)


METRIC = TwoSetMetric(
    name="kid",
    title="KID",
    summary="distance of two sets without a bias at small n; below 0 by chance if they are alike",
    formula="unbiased squared MMD of the kernel (x·y / width + 1)³ over whole sets, not subsets",
    source="Bińkowski et al., arXiv 1801.01401",
    higher_is_better=False,
    range=(None, None),
    extractor="inception",
    measure=kid,
    min_count=2,
    steady_count=50,
)
