"""The training set as the loop reads it: batches of latents, text states and image features."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from imageprompt.training.data.random_streams import RandomStreams, indices_at

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
