"""K', V' of image prompts on a denoiser's sites: made once a prompt, kept while nothing changes."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from imageprompt.attachment import Place
from imageprompt.attention import split_heads
from imageprompt.carrier import KeyValue
from imageprompt.prompt import ImagePrompt
from imageprompt.weights import AdapterModule, versions


class Projections:
    """Projects prompts with one adapter's K', V' weights for the denoiser it is attached to.

    Kept per prompt for as long as the prompt lives and no weight changes; K', V' of the null tokens
    are the same for every prompt and made once. Where gradients are wanted nothing is kept: every
    use has a graph of its own.
    """

    def __init__(self, module: AdapterModule, place: Place) -> None:
        self._module, self._place = module, place
        self._heads = [site.heads for site in place.sites.sites]
        self._kept: weakref.WeakKeyDictionary[ImagePrompt, tuple[Any, list[Tensor], list[KeyValue]]]
        self._kept = weakref.WeakKeyDictionary()
        self._kept_null: tuple[Tensor, list[KeyValue]] | None = None
        self._state: tuple[Any, ...] = ()

    def pairs(self, prompt: ImagePrompt) -> list[KeyValue]:
        """K', V' of every site, [2P, H, N, D] with the null rows first, or [P, H, N, D]."""
        weights = list(self._module.ip_adapter.parameters())
        if torch.is_grad_enabled() and any(x.requires_grad for x in (prompt.tokens, *weights)):
            null = prompt.null_tokens
            return self._stacked(prompt, None if null is None else self._project(null))
        state = (self._place.dtype, *versions(weights))
        if self._state != state:
            self._kept.clear()
            self._kept_null, self._state = None, state
        # the tensors themselves are kept too, so that no other can come to lie where they lay
        tensors = [t for t in (prompt.tokens, prompt.null_tokens) if t is not None]
        if prompt not in self._kept or self._kept[prompt][0] != versions(tensors):
            pairs = self._stacked(prompt, self._null_pairs(prompt))
            self._kept[prompt] = (versions(tensors), tensors, pairs)
        return self._kept[prompt][2]

    def _stacked(self, prompt: ImagePrompt, negative: list[KeyValue] | None) -> list[KeyValue]:
        positive = self._project(prompt.tokens)
        if negative is None:
            return positive
        return [
            (torch.cat((nk, pk)), torch.cat((nv, pv)))
            for (nk, nv), (pk, pv) in zip(negative, positive, strict=True)
        ]

    def _null_pairs(self, prompt: ImagePrompt) -> list[KeyValue] | None:
        """Those of the null tokens [P, N, W]; equal rows, the usual case, are projected once."""
        null = prompt.null_tokens
        if null is None:
            return None
        row = null[:1]
        if not torch.equal(null, row.expand_as(null)):
            return self._project(null)
        if self._kept_null is None or not torch.equal(self._kept_null[0], row):
            self._kept_null = (row.clone(), self._project(row))  # a view would change with it
        shape = (len(prompt), -1, -1, -1)
        return [(k.expand(shape), v.expand(shape)) for k, v in self._kept_null[1]]

    def _project(self, tokens: Tensor) -> list[KeyValue]:
        weight = next(self._module.ip_adapter.parameters())
        pairs = self._module.pairs(tokens.to(weight.device, weight.dtype))
        dtype = self._place.dtype
        return [
            (split_heads(k, heads).to(dtype), split_heads(v, heads).to(dtype))
            for (k, v), heads in zip(pairs, self._heads, strict=True)
        ]
