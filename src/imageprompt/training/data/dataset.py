"""What the loop reads: batches of latents, text states and image features; O(1) seek."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from imageprompt.training.data.random_streams import RandomStreams, mix_seeds

Features = Tensor | tuple[Tensor, ...]
"""[b, ...], or two of them where a variant reads a face embedding beside patch features."""


@dataclass
class Batch:
    """b samples: clean latents [b, c, h, w], text states [b, l, d], image features [b, ...].

    `added` is what the denoiser wants besides: SDXL's `text_embeds` [b, p] and `time_ids` [b, 6]
    (original height and width, crop top and left, target height and width; float32).
    """

    latents: Tensor
    text: Tensor
    features: Features
    added: dict[str, Tensor] = field(default_factory=dict)


class Samples(Protocol):
    """A training set. Classes that inherit from it have the defaults of what they leave out."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor, chance: RandomStreams) -> Batch:
        """The samples at `indices`; the random choices of each come from its own stream."""

    def null_text(self) -> Tensor:
        """Text states of the empty caption [1, l, d]."""

    def null_features(self) -> Features:
        """Image features of the null image by the variant's rule [1, ...]."""

    def null_added(self) -> dict[str, Tensor]:
        """Those parts of `Batch.added` that are dropped with the text, of the empty caption."""
        return {}

    def indices(self, step: int, batch: int, seed: int) -> Tensor:
        """The samples of a step of all processes together, in one bucket, [batch]."""
        return indices_at(step, batch, len(self), seed)


@lru_cache(maxsize=64)
def permutation(length: int, seed: int) -> Tensor:
    """The order of `length` things that belongs to a seed; kept, since steps ask for it again."""
    return torch.randperm(length, generator=torch.Generator().manual_seed(seed))


def indices_at(step: int, batch: int, length: int, seed: int) -> Tensor:
    """The samples of a step: every epoch is its own permutation, known from (seed, epoch) alone."""
    places = range(step * batch, (step + 1) * batch)
    orders = {
        epoch: permutation(length, mix_seeds(seed, epoch))
        for epoch in {p // length for p in places}
    }
    return torch.stack([orders[place // length][place % length] for place in places])


class BucketOrder:
    """Which samples a step sees where they come in buckets: a batch stays in one of them.

    Every bucket is read epoch after epoch, each a permutation of its own, in batches that run on
    over the end of an epoch, so that nothing is left out and nothing repeated. How many batches of
    each bucket an epoch of the whole set holds follows from sizes alone, and their order from
    (seed, epoch): a step is found without reading those before it.
    """

    def __init__(self, buckets: Sequence[Tensor]) -> None:
        self.buckets = [bucket for bucket in buckets if len(bucket)]
        self.sizes = [len(bucket) for bucket in self.buckets]

    def at(self, step: int, batch: int, seed: int) -> Tensor:
        """Indices of a step, [batch]."""
        epoch = self._epoch_of(step, batch)
        first = [size * epoch // batch for size in self.sizes]
        counts = [
            size * (epoch + 1) // batch - f for size, f in zip(self.sizes, first, strict=True)
        ]
        turns = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
        turns = turns[permutation(len(turns), mix_seeds(seed, epoch, 1))]
        place = step - sum(first)
        bucket = int(turns[place])
        nth = first[bucket] + int((turns[:place] == bucket).sum())
        inside = indices_at(nth, batch, self.sizes[bucket], mix_seeds(seed, bucket, 2))
        return self.buckets[bucket][inside]

    def _epoch_of(self, step: int, batch: int) -> int:
        """The epoch whose batches include that of `step`: bisection over the counts of batches."""
        low, high = 0, 1
        while self._before(high, batch) <= step:
            high *= 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._before(middle, batch) > step else (middle, high)
        return low

    def _before(self, epoch: int, batch: int) -> int:
        """Batches of all epochs before `epoch`."""
        return sum(size * epoch // batch for size in self.sizes)
