"""Words that the bundled judge reads alike in two pictures: what several metrics share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from imageprompt.demo.scenes import ATTRIBUTES
from imageprompt.evaluation.metrics.contract import Rows, Values


def share_of(*words: str) -> Callable[[Rows, Rows], Values]:
    """A comparison of rows [n, 5]: the share of these attributes that are equal in both.

    NaN beside a picture that could not be read.
    """
    chosen = [ATTRIBUTES.index(word) for word in words]

    def compare(pictures: Rows, references: Rows) -> Values:
        unread = np.isnan(pictures).any(1) | np.isnan(references).any(1)
        equal = (pictures == references)[:, chosen]
        values: Values = np.where(unread, np.nan, equal.mean(1))
        return values

    return compare
