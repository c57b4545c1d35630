"""What the loop reads: batches of latents, text states and image features; O(1) seek."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass
class Batch:
    """b samples: clean latents [b, c, h, w], text states [b, l, d], image features [b, ...]."""

    latents: Tensor
    text: Tensor
    features: Tensor


class Samples(Protocol):
    """A training set whose features are encoded (once, or lightly augmented on the fly)."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor, generator: torch.Generator) -> Batch:
        """The samples at `indices`; every random choice comes from `generator`."""

    def null_text(self) -> Tensor:
        """Text states of the empty caption [1, l, d]."""

    def null_features(self) -> Tensor:
        """Image features of the null image by the variant's rule [1, ...]."""


def indices_at(step: int, batch: int, length: int, seed: int) -> Tensor:
    """The samples of a step: every epoch is its own permutation, known from (seed, epoch) alone."""
    positions = range(step * batch, (step + 1) * batch)
    orders: dict[int, Tensor] = {}
    for epoch in {position // length for position in positions}:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        orders[epoch] = torch.randperm(length, generator=generator)
    return torch.stack([orders[position // length][position % length] for position in positions])
