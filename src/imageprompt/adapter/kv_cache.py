"""K', V' of image prompts on a denoiser's sites: made once a prompt, kept while nothing changes."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from imageprompt.adapter.attachment import AttachedDenoiser
from imageprompt.adapter.weights import AdapterModule
from imageprompt.attention.decoupled import KeyValue, split_heads
from imageprompt.core.fingerprint import fingerprint, versions
from imageprompt.encoding.image_prompt import ImagePrompt, Prepared


class KVCache:
    """Projects prompts with one adapter's K', V' weights for the denoiser it is attached to.

    Kept per prompt for as long as the prompt lives and no weight changes; K', V' of the null tokens
    are the same for every prompt and made once. Where gradients are wanted nothing is kept: every
    use has a graph of its own.
    """

    def __init__(self, module: AdapterModule, place: AttachedDenoiser) -> None:
        self._module, self._place = module, place
        self._sites = place.sites.sites
        self._kept: weakref.WeakKeyDictionary[ImagePrompt, tuple[Any, list[Tensor], list[KeyValue]]]
        self._kept = weakref.WeakKeyDictionary()
        self._kept_null: tuple[Tensor, list[KeyValue]] | None = None
        self._state: tuple[Any, ...] = ()
        self._name = ""

    def key_values(self, prompt: ImagePrompt) -> list[KeyValue]:
        """K', V' of every site, [2P, H, N, D] with the null rows first, or [P, H, N, D]."""
        weights = list(self._module.ip_adapter.parameters())
        if torch.is_grad_enabled() and any(x.requires_grad for x in (prompt.tokens, *weights)):
            null = prompt.null_tokens
            positive = self._project(prompt.tokens)
            return _stacked(positive, None if null is None else self._project(null))
        self._forget_stale()
        # the tensors themselves are kept too, so that no other can come to lie where they lay
        tensors = [t for t in (prompt.tokens, prompt.null_tokens) if t is not None]
        if prompt not in self._kept or self._kept[prompt][0] != versions(tensors):
            with torch.inference_mode(False), torch.no_grad():  # good for calls of every mode
                pairs = _stacked(self._positive_pairs(prompt), self._null_pairs(prompt))
            self._kept[prompt] = (versions(tensors), tensors, pairs)
        return self._kept[prompt][2]

    def precompute(self, prompt: ImagePrompt) -> None:
        """Keep K', V' of the prompt's tokens with it, so that they are saved along."""
        self._forget_stale()
        with torch.no_grad():
            pairs = self._project_flat(prompt.tokens)
        ids = [site.file_id for site in self._sites]
        named = dict(zip(ids, pairs, strict=True))
        prompt.prepared = Prepared(self._made_by(), named, versions([prompt.tokens]))

    def made_by(self) -> str:
        """Names the weights, their precision and that of the denoiser."""
        self._forget_stale()
        return self._made_by()

    def _made_by(self) -> str:
        if not self._name:
            weights = self._module.ip_adapter.state_dict()
            precision = next(iter(weights.values())).dtype
            self._name = f"{fingerprint(weights)} {precision} {self._place.dtype}"
        return self._name

    def _forget_stale(self) -> None:
        """Drop what was made by other weights or for another precision."""
        state = (self._place.dtype, *versions(self._module.ip_adapter.parameters()))
        if self._state != state:
            self._kept.clear()
            self._kept_null, self._state, self._name = None, state, ""

    def _positive_pairs(self, prompt: ImagePrompt) -> list[KeyValue]:
        """Those of the prompt's tokens: prepared ahead by these very weights, or made now."""
        ahead, ids = prompt.prepared, [site.file_id for site in self._sites]
        suits = ahead is not None and ahead.suits(self._made_by(), prompt.tokens)
        shapes = {site.file_id: (*prompt.tokens.shape[:2], site.inner_dim) for site in self._sites}
        if ahead is None or not suits or ahead.shapes() != shapes:
            return self._project(prompt.tokens)
        device = next(self._module.ip_adapter.parameters()).device
        return self._split((k.to(device), v.to(device)) for k, v in (ahead.pairs[i] for i in ids))

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
        return self._split(self._project_flat(tokens))

    def _project_flat(self, tokens: Tensor) -> list[KeyValue]:
        """K', V' [P, N, width] site by site, in the denoiser's dtype."""
        weight = next(self._module.ip_adapter.parameters())
        pairs = self._module.pairs(tokens.to(weight.device, weight.dtype))
        dtype = self._place.dtype  # asked once: diffusers looks through every module for it
        return [(k.to(dtype), v.to(dtype)) for k, v in pairs]

    def _split(self, pairs: Iterable[KeyValue]) -> list[KeyValue]:
        """[P, N, width] -> [P, H, N, D], views."""
        return [
            (split_heads(k, site.heads), split_heads(v, site.heads))
            for (k, v), site in zip(pairs, self._sites, strict=True)
        ]


def _stacked(positive: list[KeyValue], negative: list[KeyValue] | None) -> list[KeyValue]:
    """The null rows first, [2P, H, N, D]; the positive ones alone where there is no null."""
    if negative is None:
        return positive
    return [
        (torch.cat((nk, pk)), torch.cat((nv, pv)))
        for (nk, nv), (pk, pv) in zip(negative, positive, strict=True)
    ]
