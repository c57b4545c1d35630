"""Which samples a step sees: batches stay within one bucket; any step is found in O(1) time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imageprompt.training.data.random_streams import indices_at, mix_seeds, permutation
from imageprompt.training.data.views import PictureOptions


class BucketSampler:
    """Draws batches whose samples share a bucket; a single bucket holds everything without buckets.

    Every bucket is read epoch after epoch, each in its own permutation, in batches that continue
    across the end of an epoch, so no sample is left out or repeated. The number of batches that an
    epoch of the whole set takes from each bucket follows from sizes alone, and their order from
    (seed, epoch): a step is found without reading those before it.
    """

    def __init__(self, buckets: Sequence[NDArray[np.int64]]) -> None:
        """`buckets`: sorted indices of the samples in each; empty ones are left out."""
        self.buckets = [bucket for bucket in buckets if len(bucket)]
        self._sizes = [len(bucket) for bucket in self.buckets]

    @classmethod
    def by_size(cls, sizes: NDArray[np.int32], options: PictureOptions) -> BucketSampler:
        """By the bucket of each picture size [n, 2]; those of unknown size (0) are in no bucket."""
        known = np.flatnonzero(sizes.all(axis=1))
        different, inverse = np.unique(sizes[known], axis=0, return_inverse=True)
        of_size = np.array([options.bucket((int(w), int(h))) for w, h in different], np.int64)
        bucket_of = of_size[inverse.reshape(-1)] if len(known) else of_size
        return cls([known[bucket_of == bucket] for bucket in range(len(options.sizes))])

    @classmethod
    def single(cls, count: int) -> BucketSampler:
        """All samples in one bucket."""
        return cls([np.arange(count)])

    def __len__(self) -> int:
        return sum(self._sizes)

    def indices(self, step: int, batch: int, seed: int) -> Tensor:
        """The samples of a step, [batch]."""
        if len(self.buckets) == 1:
            return torch.from_numpy(self.buckets[0])[indices_at(step, batch, len(self), seed)]
        epoch = self._epoch_of(step, batch)
        first = [size * epoch // batch for size in self._sizes]
        counts = [
            size * (epoch + 1) // batch - start
            for size, start in zip(self._sizes, first, strict=True)
        ]
        turns = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
        turns = turns[permutation(len(turns), mix_seeds(seed, epoch, 1))]
        position = step - sum(first)
        bucket = int(turns[position])
        nth = first[bucket] + int((turns[:position] == bucket).sum())
        inside = indices_at(nth, batch, self._sizes[bucket], mix_seeds(seed, bucket, 2))
        return torch.from_numpy(self.buckets[bucket])[inside]

    def next_in_bucket(self, index: int) -> int:
        """The sample after `index` in its bucket; the first one follows the last."""
        for bucket in self.buckets:
            position = int(np.searchsorted(bucket, index))
            if position < len(bucket) and bucket[position] == index:
                return int(bucket[(position + 1) % len(bucket)])
        return int(self.buckets[0][0])

    def _epoch_of(self, step: int, batch: int) -> int:
        """The epoch whose batches include that of `step`, by bisection over numbers of batches."""
        low, high = 0, 1
        while self._batches_before(high, batch) <= step:
            high *= 2
        while high - low > 1:
            middle = (low + high) // 2
            if self._batches_before(middle, batch) > step:
                high = middle
            else:
                low = middle
        return low

    def _batches_before(self, epoch: int, batch: int) -> int:
        """The number of batches in all epochs before `epoch`."""
        return sum(size * epoch // batch for size in self._sizes)
