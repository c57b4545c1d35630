"""K', V' and masks of one image prompt, laid out as the rows of a batch.

Shapes: P prompts, B batch, H heads, Q query positions, N image tokens, D head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from imageprompt.attention.cfg_layout import LAYOUTS, CFGLayout
from imageprompt.attention.compiled import is_exporting
from imageprompt.attention.decoupled import KeyValue
from imageprompt.core.errors import GuidanceError


class BatchedKV:
    """K', V' and masks for the rows of a call, built once per layout rather than once per step.

    `key_values[s]` holds K' and V' [2P or P, H, N, D] of site s, with the negative rows first if
    there are any. `masks` (one, or one per prompt, [1, 1, height, width]) say where the reference
    acts.
    """

    def __init__(
        self, key_values: Sequence[KeyValue], prompts: int, masks: Sequence[Tensor]
    ) -> None:
        self.rows: list[KeyValue] = []
        """K', V' [B, H, N, D] of every site."""
        self.layout: CFGLayout = ()
        """The guidance layout of the rows; empty before the first call."""
        self.key: tuple[Any, ...] = ()
        """All that the rows depend on; empty before the first call."""
        self._key_values, self._prompts, self._masks = list(key_values), prompts, list(masks)
        self._images_per_prompt = 1
        self._latent_size = (1, 1)
        self._resized_masks: dict[int, Tensor] = {}

    @property
    def has_negative(self) -> bool:
        return self._key_values[0][0].shape[0] == 2 * self._prompts

    def replace(self, key_values: Sequence[KeyValue]) -> None:
        """Take on K', V' of another timestep; `bind` builds their rows."""
        self._key_values, self.key = list(key_values), ()

    def scale_rows(self, numbers: Tensor) -> None:
        """Multiply V' of each prompt by its number [P]."""
        rows = numbers.repeat(len(self._key_values[0][0]) // self._prompts)[:, None, None, None]
        self.replace([(k, v * rows.to(v)) for k, v in self._key_values])

    def bind(
        self,
        layout: CFGLayout,
        images_per_prompt: int,
        like: Tensor,
        size: tuple[int, int],
        on_negative: Sequence[bool],
    ) -> bool:
        """Build the rows for latents `like` of a size; returns False where nothing had changed.

        `on_negative[s]` is True where site s shows the reference to the negative rows. Raises
        GuidanceError for a negative branch if there are no null tokens.
        """
        # rows that were built without gradients cannot be used where gradients are wanted
        grad = torch.is_grad_enabled()
        key = (layout, images_per_prompt, size, like.device, like.dtype, grad, tuple(on_negative))
        if key == self.key:
            return False
        if "negative" in layout and not self.has_negative:
            raise GuidanceError(
                "image prompt without null tokens",
                reason="guidance needs a negative side",
                hint="Encode with an encoder attached, or pass null_features=.",
            )
        # what is made while torch.export traces is no tensor: the next call must not find it
        self.key = () if is_exporting() else key
        self.layout, self._resized_masks = layout, {}
        self._images_per_prompt, self._latent_size = images_per_prompt, size
        self.rows = [
            (
                self._build_rows(k, negative).to(like.device, like.dtype),
                self._build_rows(v, negative).to(like.device, like.dtype),
            )
            for (k, v), negative in zip(self._key_values, on_negative, strict=True)
        ]
        return True

    def _build_rows(self, x: Tensor, on_negative: bool) -> Tensor:
        """[2P, ...] -> [B, ...]: one block per branch, each prompt `images_per_prompt` times.

        With `on_negative` the negative rows read the reference; the positive rows read zeros, which
        add nothing.
        """
        repeats = self._images_per_prompt
        if self.layout == LAYOUTS["negative-positive"] and repeats == 1 and not on_negative:
            return x
        positive = x[-self._prompts :]
        branches = {"positive": positive, "negative": x[: self._prompts]}
        if on_negative:
            branches = {"positive": torch.zeros_like(positive), "negative": positive}
        blocks = [branches[branch] for branch in self.layout]
        rows = blocks[0] if len(blocks) == 1 else torch.cat(blocks)
        return rows if repeats == 1 else rows.repeat_interleave(repeats, dim=0)

    def mask(self, q: Tensor) -> Tensor | None:
        """The mask [1 or B, 1, Q, 1] for queries [B * frames, H, Q, D], resized once per Q."""
        if not self._masks:
            return None
        queries = int(q.shape[2])
        if queries not in self._resized_masks:
            self._resized_masks[queries] = self._resize(queries, q)
        return self._resized_masks[queries]

    def level_mask(self, size: tuple[int, int]) -> Tensor:
        """The mask [B, 1, Q, 1] in float32 at a level of that size; ones without a mask."""
        like, queries = self.rows[0][0], size[0] * size[1]
        weights = torch.ones(like.shape[0], 1, queries, 1, device=like.device)
        # in place, so that a mask does not change the strides, which are part of a graph
        return weights.mul_(self._resize(queries, weights)) if self._masks else weights

    def _resize(self, queries: int, q: Tensor) -> Tensor:
        masks = (mask.to(q.device) for mask in self._masks)
        resized = [resize_mask(mask, self._latent_size, queries).to(q.dtype) for mask in masks]
        if len(resized) == 1:
            return resized[0]
        rows = torch.cat(resized * len(self.layout))
        return rows.repeat_interleave(self._images_per_prompt, dim=0)


def resize_mask(mask: Tensor, latents: tuple[int, int], queries: int) -> Tensor:
    """A mask [R, 1, H, W] -> float32 weights [R, 1, Q, 1], one for each query.

    Raises GuidanceError if no level of a UNet with these latents has that many queries, and for
    rows that are not a grid of positions (0 x 0).
    """
    if 0 in latents:
        raise GuidanceError(
            "a mask on this base",
            reason="the rows of its picture do not form a grid of known height and width",
            hint="Use the reference without a mask.",
        )
    size = next((s for s in level_sizes(*latents) if s[0] * s[1] == queries), None)
    if size is None:
        height, width = latents
        raise GuidanceError(
            f"a mask at {queries} positions",
            reason=f"no level of latents of {height}x{width} has that many",
            hint="Use the reference without a mask on this base.",
        )
    resized = F.interpolate(mask.float(), size=size, mode="bicubic")
    return resized.flatten(2).transpose(1, 2).unsqueeze(1)


def level_sizes(height: int, width: int) -> Iterator[tuple[int, int]]:
    """The sizes of a UNet's levels: each half of the one before, rounded up."""
    yield height, width
    while (height, width) != (1, 1):
        height, width = (height + 1) // 2, (width + 1) // 2
        yield height, width
