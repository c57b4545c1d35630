"""Random numbers of training: one stream a sample, the same on any number of processes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_MASK = 2**64 - 1


def mix_seeds(*numbers: int) -> int:
    """A 32-bit seed from several numbers, each bit of it moved by each of them (splitmix64).

    torch's generator on the CPU reads no more than 32 bits of its seed.
    """
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 32


class RandomStreams:
    """What a micro step draws from: a generator for each of its b samples, one for all of them.

    A sample's numbers depend on the run's seed and on its place in the run, not on which process
    or which part of an accumulated step it falls to: two processes with a sample each draw what
    one process with both of them draws.
    """

    def __init__(self, seeds: Sequence[int], shared: int = 0) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._shared = torch.Generator().manual_seed(shared)

    @classmethod
    def at(cls, seed: int, first: int, count: int, step: int) -> RandomStreams:
        """For samples `first`, `first` + 1 ... of the run (all epochs), at an optimiser step."""
        seeds = [mix_seeds(seed, 1, place) for place in range(first, first + count)]
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
        """Whole numbers from 0 to high - 1, int64 [b]."""
        return torch.cat([torch.randint(high, (1,), generator=one) for one in self.generators])

    def step_rand(self) -> float:
        """Uniform in [0, 1), the same for every sample of an optimiser step."""
        return float(torch.rand((), generator=self._shared))
