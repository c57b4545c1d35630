"""The training set as the loop reads it: batches, which samples a step sees, random streams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from imageprompt.training.data.views import PictureOptions

_MASK = 2**64 - 1
Features = Tensor | tuple[Tensor, ...]
"""[b, ...], or two of them where a variant reads a face embedding beside patch features."""


@dataclass
class Batch:
    """b samples: clean latents [b, c, h, w], text states [b, l, d], image features [b, ...].

    `added` holds the denoiser's other conditions by its own names, such as a mask of the text
    [b, l], and SDXL's `text_embeds` [b, p] and `time_ids` [b, 6] (original height and width, crop
    top and left, target height and width; float32).
    """

    latents: Tensor
    text: Tensor
    features: Features
    added: dict[str, Tensor] = field(default_factory=dict)


class Dataset(Protocol):
    """A training set. Subclasses inherit `null_added` and `indices`."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor, streams: RandomStreams) -> Batch:
        """The samples at `indices`; each makes its random choices from its own stream."""

    def null_text(self) -> Tensor:
        """Text states of the empty caption [1, l, d]."""

    def null_features(self) -> Features:
        """Image features of the null image by the variant's rule [1, ...]."""

    def null_added(self) -> dict[str, Tensor]:
        """The parts of `Batch.added` that are dropped with the text, for the empty caption."""
        return {}

    def indices(self, step: int, batch: int, seed: int) -> Tensor:
        """The samples of a step of all processes together, from one bucket, [batch]."""
        return indices_at(step, batch, len(self), seed)


# ── all randomness, a function of the seed ────────────────────────────────────────────────────────


def mix_seeds(*numbers: int) -> int:
    """A 32-bit seed from several numbers; each of them changes every bit (splitmix64).

    torch's CPU generator reads only 32 bits of its seed.
    """
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 32


@lru_cache(maxsize=64)
def permutation(length: int, seed: int) -> Tensor:
    """The permutation of `length` items that belongs to a seed; cached, as every step needs it."""
    return torch.randperm(length, generator=torch.Generator().manual_seed(seed))


def indices_at(step: int, batch: int, length: int, seed: int) -> Tensor:
    """The samples of a step, [batch]: each epoch has its own permutation, from (seed, epoch)."""
    positions = range(step * batch, (step + 1) * batch)
    orders = {
        epoch: permutation(length, mix_seeds(seed, epoch))
        for epoch in {position // length for position in positions}
    }
    return torch.stack([orders[position // length][position % length] for position in positions])


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


class RandomStreams:
    """Random numbers of a micro step: one generator for each of its b samples, one for all.

    A sample's numbers depend on the run's seed and its position in the run, not on the process or
    the part of an accumulated step it falls to: two processes with one sample each draw the same
    numbers as one process with both.
    """

    def __init__(self, seeds: Sequence[int], shared: int = 0) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._shared = torch.Generator().manual_seed(shared)

    @classmethod
    def at(cls, seed: int, first: int, count: int, step: int) -> RandomStreams:
        """For samples `first`, `first` + 1 ... of the run (all epochs), at an optimiser step."""
        seeds = [mix_seeds(seed, 1, position) for position in range(first, first + count)]
        return cls(seeds, mix_seeds(seed, 2, step))

    @classmethod
    def of_samples(cls, indices: Tensor) -> RandomStreams:
        """Always the same for a sample; for what is random outside of the run's steps."""
        return cls([mix_seeds(4, index) for index in indices.tolist()])

    def __len__(self) -> int:
        return len(self.generators)

    def rand(self, *shape: int) -> Tensor:
        """Uniform in [0, 1), [b, *shape]."""
        return torch.stack([torch.rand(shape, generator=one) for one in self.generators])

    def randn(self, *shape: int) -> Tensor:
        """Standard normal, [b, *shape]."""
        return torch.stack([torch.randn(shape, generator=one) for one in self.generators])

    def integers(self, high: int) -> Tensor:
        """Integers from 0 to high - 1, int64 [b]."""
        return torch.cat([torch.randint(high, (1,), generator=one) for one in self.generators])

    def step_rand(self) -> float:
        """Uniform in [0, 1), the same for every sample of an optimiser step."""
        return float(torch.rand((), generator=self._shared))
