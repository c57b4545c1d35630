"""Precision, recall, density, coverage: how much of two sets lies in each other's neighbourhoods.

A neighbourhood is the ball around a row that reaches to its k-th neighbour in its own set.
"""

from __future__ import annotations

import numpy as np

from imageprompt.evaluation.metrics._blocks import as_float64, blocks, squared_distances
from imageprompt.evaluation.metrics.contract import Matrix, Rows, TwoSetMetric

NEIGHBOURS, DENSE_NEIGHBOURS = 3, 5
"""k of precision and recall, and of density and coverage."""


def precision_recall(
    pictures: Rows,
    references: Rows,
    neighbours: int = NEIGHBOURS,
    dense_neighbours: int = DENSE_NEIGHBOURS,
) -> dict[str, float]:
    """The four figures, by name."""
    ks = (neighbours, dense_neighbours)
    around_pictures, around_references = _radii(pictures, ks)[0], _radii(references, ks)
    near = np.zeros(len(pictures), bool)
    inside = np.zeros(len(pictures))
    found, covered = np.zeros(len(references), bool), np.zeros(len(references), bool)
    for rows in blocks(len(references)):
        part = as_float64(references[rows])
        narrow, wide = (radii[rows, None] for radii in around_references)
        for columns in blocks(len(pictures)):
            apart = squared_distances(part, as_float64(pictures[columns]))
            near[columns] |= (apart < narrow).any(0)
            dense = apart < wide
            inside[columns] += dense.sum(0)
            covered[rows] |= dense.any(1)
            found[rows] |= (apart < around_pictures[columns]).any(1)
    return {
        "precision": float(near.mean()),
        "recall": float(found.mean()),
        "density": float(inside.mean() / dense_neighbours),
        "coverage": float(covered.mean()),
    }


def _radii(x: Rows, ks: tuple[int, ...]) -> list[Matrix]:
    """Squared distances [n] of each row to its k-th neighbour in the set, itself not counted."""
    most = max(ks)
    nearest = np.full((len(x), most), np.inf)
    for rows in blocks(len(x)):
        part = as_float64(x[rows])
        for columns in blocks(len(x)):
            apart = squared_distances(part, as_float64(x[columns]))
            if rows == columns:
                np.fill_diagonal(apart, np.inf)
            closest = np.partition(np.hstack([nearest[rows], apart]), most - 1, axis=1)
            nearest[rows] = closest[:, :most]
    nearest.sort(axis=1)
    return [nearest[:, k - 1] for k in ks]


METRIC = TwoSetMetric(
    name="precision-recall",
    title="precision, recall",
    summary="pictures that look like references, and references that are reached; n decides much",
    formula="share of pictures near a reference, of references near a picture (k 3); references "
    "around a picture over k, share of references with a picture around (k 5)",
    source="Kynkäänniemi et al., arXiv 1904.06991; Naeem et al., arXiv 2002.09797",
    higher_is_better=True,
    range=(0, None),
    extractor="inception",
    measure=precision_recall,
    parts={"precision": (0, 1), "recall": (0, 1), "density": (0, None), "coverage": (0, 1)},
    min_count=DENSE_NEIGHBOURS + 1,
)
