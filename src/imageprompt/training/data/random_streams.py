"""All randomness of the training data, a function of the seed: order of samples, and streams."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

_MASK = 2**64 - 1


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
