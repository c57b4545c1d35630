"""Which samples a set has, which of them go together, and which stand in for broken ones."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imageprompt.training.cache.encoders import FeatureExtractors
from imageprompt.training.data.dataset import BucketOrder, indices_at
from imageprompt.training.data.framing import PictureOptions
from imageprompt.training.data.sources import Records


def fingerprint_of(records: Records, encoders: FeatureExtractors, options: PictureOptions) -> str:
    """Changes when the data does, what encodes it, or how it is framed; cached or not."""
    parts = (records.fingerprint(), options.identity(), encoders.identity())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


class Groups:
    """The indices of all samples that can be in a batch together; one group without buckets."""

    def __init__(self, groups: Sequence[NDArray[np.int64]]) -> None:
        self.groups = [group for group in groups if len(group)]
        self._order = BucketOrder([torch.from_numpy(group) for group in self.groups])

    @classmethod
    def by_size(cls, sizes: NDArray[np.int32], options: PictureOptions) -> Groups:
        """By the bucket of each picture; those of unknown size (0) are in none."""
        known = np.flatnonzero(sizes.all(axis=1))
        different, inverse = np.unique(sizes[known], axis=0, return_inverse=True)
        buckets = np.array([options.bucket((int(w), int(h))) for w, h in different], np.int64)
        of = buckets[inverse.reshape(-1)] if len(known) else buckets
        return cls([known[of == bucket] for bucket in range(len(options.sizes))])

    @classmethod
    def all(cls, count: int) -> Groups:
        """Every sample, in one group."""
        return cls([np.arange(count)])

    def __len__(self) -> int:
        return sum(map(len, self.groups))

    def indices(self, step: int, batch: int, seed: int) -> Tensor:
        """The samples of a step, [batch]."""
        if len(self.groups) == 1:
            return torch.from_numpy(self.groups[0])[indices_at(step, batch, len(self), seed)]
        return self._order.at(step, batch, seed)

    def after(self, index: int) -> int:
        """The sample after `index` in its group, round and round."""
        for group in self.groups:
            place = int(np.searchsorted(group, index))
            if place < len(group) and group[place] == index:
                return int(group[(place + 1) % len(group)])
        return int(self.groups[0][0])
