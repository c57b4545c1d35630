"""K', V' and masks of one image prompt, laid out as the rows of a batch.

Shapes: P prompts, B batch, H heads, Q query positions, N image tokens, D head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from imageprompt.attention.cfg_layout import CFGLayout
from imageprompt.attention.decoupled import KeyValue
from imageprompt.core.errors import GuidanceError


def laid_out(mask: Tensor, latents: tuple[int, int], queries: int) -> Tensor:
    """A mask [R, 1, H, W] -> weights [R, 1, Q, 1] of the queries, float32.

    Raises GuidanceError for a number of queries that no level of the UNet has.
    """
    size = next((level for level in levels(*latents) if level[0] * level[1] == queries), None)
    if size is None:
        height, width = latents
        raise GuidanceError(
            f"a mask at {queries} positions",
            reason=f"no level of latents of {height}x{width} has as many",
            hint="Use the reference without a mask on this base.",
        )
    resized = F.interpolate(mask.float(), size=size, mode="bicubic")
    return resized.flatten(2).transpose(1, 2).unsqueeze(1)


def levels(height: int, width: int) -> Iterator[tuple[int, int]]:
    """The sizes of a UNet's levels: each half of the one before, rounded up."""
    yield height, width
    while (height, width) != (1, 1):
        height, width = (height + 1) // 2, (width + 1) // 2
        yield height, width


class BatchedKV:
    """Rows for the batch of a call: made once for each layout, not once a step.

    `pairs[s]` holds K' and V' [2P or P, H, N, D] of site s, negative rows first if there are any.
    `masks` (one, or one a prompt, [1, 1, height, width]) say where the reference acts.
    """

    def __init__(self, pairs: Sequence[KeyValue], prompts: int, masks: Sequence[Tensor]) -> None:
        self.pairs: list[KeyValue] = []
        """K', V' [B, H, N, D] of every site."""
        self.branches: CFGLayout = ()
        self.layout: tuple[Any, ...] = ()
        """What the rows were laid out for; empty before the first call."""
        self._source, self._prompts, self._masks = list(pairs), prompts, list(masks)
        self._regions: dict[int, Tensor] = {}

    @property
    def has_negative(self) -> bool:
        return self._source[0][0].shape[0] == 2 * self._prompts

    def bind(self, branches: CFGLayout, copies: int, like: Tensor, pushed: Sequence[bool]) -> bool:
        """Lay everything out for latents `like`; returns whether anything had to be done.

        Raises GuidanceError for a negative branch where there are no null tokens.
        """
        # what was laid out without gradients has lost them
        size = (int(like.shape[-2]), int(like.shape[-1]))
        grad = torch.is_grad_enabled()
        layout = (branches, copies, size, like.device, like.dtype, grad, tuple(pushed))
        # a compiled graph lays them out itself: whatever it kept would guard its next call
        if not torch.compiler.is_compiling() and layout == self.layout:
            return False
        if "negative" in branches and not self.has_negative:
            raise GuidanceError(
                "image prompt without null tokens",
                reason="guidance needs a negative side",
                hint="Encode with an encoder attached, or pass null_features=.",
            )
        self.branches, self.layout, self._regions = branches, layout, {}
        self.pairs = [
            (
                self._rows(k, aside, copies).to(like.device, like.dtype),
                self._rows(v, aside, copies).to(like.device, like.dtype),
            )
            for (k, v), aside in zip(self._source, pushed, strict=True)
        ]
        return True

    def _rows(self, x: Tensor, pushed: bool, copies: int) -> Tensor:
        """[2P, ...] -> [B, ...]: the branches stacked, every prompt `copies` times in a row.

        Where the reference is pushed, it is what the negative rows read; the positive ones read
        zeros, which add nothing.
        """
        positive = x[-self._prompts :]
        half = {"positive": positive, "negative": x[: self._prompts]}
        if pushed:
            half = {"positive": torch.zeros_like(positive), "negative": positive}
        parts = [half[branch] for branch in self.branches]
        stacked = parts[0] if len(parts) == 1 else torch.cat(parts)
        return stacked if copies == 1 else stacked.repeat_interleave(copies, dim=0)

    def region(self, q: Tensor) -> Tensor | None:
        """The mask [1 or B, 1, Q, 1] for queries [B * frames, H, Q, D]; once a resolution."""
        if not self._masks:
            return None
        queries = int(q.shape[2])
        if torch.compiler.is_compiling():
            return self._resized(queries, q)
        if queries not in self._regions:
            self._regions[queries] = self._resized(queries, q)
        return self._regions[queries]

    def _resized(self, queries: int, q: Tensor) -> Tensor:
        _, copies, latents, *_ = self.layout
        masks = (mask.to(q.device) for mask in self._masks)
        regions = [laid_out(mask, latents, queries).to(q.dtype) for mask in masks]
        if len(regions) == 1:
            return regions[0]
        return torch.cat(regions * len(self.branches)).repeat_interleave(copies, dim=0)
