"""Products of all pairs of rows, a block at a time: n² values never exist at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from imageprompt.evaluation.metrics.contract import Matrix, Rows

Kernel = Callable[[Matrix], Matrix]

BLOCK = 2048
"""Rows: a block of products takes 32 MB."""


def blocks(count: int) -> Iterator[slice]:
    """Slices that cover so many rows."""
    return (slice(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK))


def as_float64(rows: Rows) -> Matrix:
    """In float64."""
    return rows.astype(np.float64)


def mean_kernel(
    x: Rows, y: Rows, kernel: Kernel, prepare: Callable[[Rows], Matrix] = as_float64
) -> float:
    """Mean of a function of the inner products of all rows of x [n, d] with all of y [m, d].

    `prepare` is applied to each block of rows before.
    """
    total = 0.0
    for rows in blocks(len(x)):
        part = prepare(x[rows])
        for columns in blocks(len(y)):
            total += float(kernel(part @ prepare(y[columns]).T).sum())
    return total / (len(x) * len(y))


def mean_kernel_within(
    x: Rows, kernel: Kernel, prepare: Callable[[Rows], Matrix] = as_float64
) -> tuple[float, float]:
    """The same of all pairs of different rows, and of each row with itself."""
    apart = alike = 0.0
    for rows in blocks(len(x)):
        part = prepare(x[rows])
        products = kernel(part @ part.T)
        trace = float(np.trace(products))
        alike += trace
        apart += float(products.sum()) - trace
        for columns in blocks(rows.start):  # each pair of blocks once
            apart += 2 * float(kernel(part @ prepare(x[columns]).T).sum())
    count = len(x)
    return apart / max(count * (count - 1), 1), alike / count


def squared_distances(x: Matrix, y: Matrix) -> Matrix:
    """Of all rows of one block to all of another; not below 0."""
    distances = -2 * (x @ y.T)
    distances += np.square(x).sum(1)[:, None]
    distances += np.square(y).sum(1)
    return np.maximum(distances, 0, out=distances)
