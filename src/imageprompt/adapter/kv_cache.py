"""K', V' of image prompts at a denoiser's sites: computed once per prompt and set of weights."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from imageprompt.adapter.attachment import AttachedDenoiser
from imageprompt.adapter.weights import NORM_EPS, AdapterModule
from imageprompt.attention.decoupled import KeyValue, norm_heads, split_heads
from imageprompt.core.fingerprint import ContentWatch, contents, fingerprint
from imageprompt.core.spec import Site
from imageprompt.encoding.image_prompt import ImagePrompt, PrecomputedKV


def rounds_alike(rows: int) -> bool:
    """Does a matrix product of so many rows, on a CPU in float32, round as that of more rows?"""
    return rows >= 12 or rows % 4 == 0


class KVCache:
    """Projects prompts with one adapter's K', V' weights, for the denoiser it is attached to.

    Cached per prompt for as long as the prompt lives and neither its tokens nor a weight change,
    also through `.data` (see `ContentWatch` for which writes to weights are noticed). K', V' of the
    null tokens are the same for every prompt and computed once. Where gradients are needed nothing
    is cached: every use gets its own graph. Those made under autocast are cached for it alone.
    """

    def __init__(
        self,
        module: AdapterModule,
        attached: AttachedDenoiser,
        sites: Sequence[Site],
        norms: Sequence[tuple[float | None, float | None]],
        projection: nn.Linear | None = None,
    ) -> None:
        """For the sites that the adapter acts at, each with the norms that its K' and V' get.

        `projection` is the layer of the base that projects the tokens first, if one does.
        """
        self._module, self._attached = module, attached
        self._projection = projection
        self._sites, self._norms = sites, norms
        self._cache: weakref.WeakKeyDictionary[
            ImagePrompt, tuple[Any, list[Tensor], list[KeyValue]]
        ] = weakref.WeakKeyDictionary()
        self._null: tuple[Tensor, list[KeyValue]] | None = None
        self._watch = ContentWatch()
        self._state: tuple[Any, ...] = ()
        self._made_by = ""

    def key_values(self, prompt: ImagePrompt) -> list[KeyValue]:
        """K', V' of every site, [2P, H, N, D] with the null rows first, or [P, H, N, D]."""
        weights = list(self._module.ip_adapter.parameters())
        if torch.is_grad_enabled() and any(x.requires_grad for x in (prompt.tokens, *weights)):
            null = prompt.null_tokens
            positive = self._project(prompt.tokens)
            return _with_null_rows(positive, None if null is None else self._project(null))
        self._drop_stale()
        # the tensors are stored as well, so that no new tensor can take over their memory
        tensors = [t for t in (prompt.tokens, prompt.null_tokens) if t is not None]
        state = contents(tensors)
        if prompt not in self._cache or self._cache[prompt][0] != state:
            with torch.inference_mode(False), torch.no_grad():  # usable in every grad mode
                key_values = _with_null_rows(self._positive(prompt), self._negative(prompt))
            self._cache[prompt] = (state, tensors, key_values)
        return self._cache[prompt][2]

    def placeholders(self, prompt: ImagePrompt) -> list[KeyValue]:
        """In the place of K', V' that depend on the timestep: as many rows, on their device."""
        rows = len(prompt) * (1 if prompt.null_tokens is None else 2)
        weight = next(self._module.ip_adapter.parameters())
        return [(weight.new_empty(rows, 1, 1, 1),) * 2 for _ in self._sites]

    def key_values_at(
        self, prompt: ImagePrompt, timestep: Tensor, *, negative: bool
    ) -> list[KeyValue]:
        """K', V' as `key_values` has them, at a timestep [1], from the features in a prompt.

        Without null rows unless a `negative` side needs them.
        """
        projector: Any = self._module.image_proj
        weight = next(self._module.ip_adapter.parameters())
        null = prompt.null_tokens if negative else None
        features = prompt.tokens if null is None else torch.cat((null, prompt.tokens))
        rows, length, _ = features.shape
        references = int(prompt.metadata.get("references", "1"))
        features = features.reshape(rows * references, length // references, -1).to(weight)
        time = projector.time_embedding(timestep.to(weight.device))
        tokens = projector(features, time)
        tokens = tokens.reshape(rows, -1, tokens.shape[-1])
        key_values = self._module.key_values(tokens, time)
        dtype = self._attached.dtype
        return self._split((k.to(dtype), v.to(dtype)) for k, v in key_values)

    def norms(self) -> list[tuple[Tensor, Tensor]] | None:
        """The norms that the picture's own q and k get, for adapters that read them."""
        layers: list[Any] = list(self._module.sites)
        if not hasattr(layers[0], "norm_q"):
            return None
        return [(layer.norm_q.weight, layer.norm_k.weight) for layer in layers]

    def precompute(self, prompt: ImagePrompt) -> None:
        """Store K', V' of the prompt's tokens with the prompt, so that they are saved with it."""
        with torch.no_grad():
            key_values = self._project_flat(prompt.tokens)
        ids = [site.file_id for site in self._sites]
        named = dict(zip(ids, key_values, strict=True))
        prompt.precomputed_kv = PrecomputedKV(self.made_by(), named, contents([prompt.tokens]))

    def made_by(self) -> str:
        """Identifies the weights, their precision and that of the denoiser."""
        self._drop_stale()
        return self._weights_made_by()

    def _weights_made_by(self) -> str:
        if not self._made_by:
            weights = self._module.ip_adapter.state_dict()
            precision = next(iter(weights.values())).dtype
            autocast = _autocast(next(iter(weights.values())).device)
            if self._projection is not None:
                weights |= {f"text.{n}": x for n, x in self._projection.state_dict().items()}
            self._made_by = f"{fingerprint(weights)} {precision} {self._attached.dtype}" + (
                f" autocast {autocast}" if autocast else ""
            )
        return self._made_by

    def _drop_stale(self) -> None:
        """Drop everything if the weights, the precision or autocast have changed."""
        weights = list(self._module.ip_adapter.parameters())
        autocast = _autocast(weights[0].device)
        state = (self._attached.dtype, autocast, *self._watch.state(weights))
        if self._state != state:
            self._cache.clear()
            self._null, self._state, self._made_by = None, state, ""

    def _positive(self, prompt: ImagePrompt) -> list[KeyValue]:
        """Those of the prompt's tokens: precomputed with these very weights, or computed now."""
        precomputed, ids = prompt.precomputed_kv, [site.file_id for site in self._sites]
        shapes = {site.file_id: (*prompt.tokens.shape[:2], site.inner_dim) for site in self._sites}
        if (
            precomputed is None
            or not precomputed.matches(self._weights_made_by(), prompt.tokens)
            or precomputed.shapes() != shapes
        ):
            return self._project(prompt.tokens)
        device = next(self._module.ip_adapter.parameters()).device
        stored = (precomputed.key_values[file_id] for file_id in ids)
        return self._split((k.to(device), v.to(device)) for k, v in stored)

    def _negative(self, prompt: ImagePrompt) -> list[KeyValue] | None:
        """Those of the null tokens [P, N, W]; equal rows, the usual case, are projected once."""
        null = prompt.null_tokens
        if null is None:
            return None
        row = null[:1]
        if not torch.equal(null, row.expand_as(null)):
            return self._project(null)
        if self._null is None or not torch.equal(self._null[0], row):
            self._null = (row.clone(), self._project(row))  # a view would change with its tensor
        shape = (len(prompt), -1, -1, -1)
        return [(k.expand(shape), v.expand(shape)) for k, v in self._null[1]]

    def _project(self, tokens: Tensor) -> list[KeyValue]:
        return self._split(self._project_flat(tokens))

    def _project_flat(self, tokens: Tensor) -> list[KeyValue]:
        """K', V' [P, N, inner_dim] site by site, in the denoiser's dtype.

        Each prompt's round as without the others, also on a CPU, where few rows add up in another
        order than many; in training, where tokens need gradients, speed counts more.
        """
        few = len(tokens) > 1 and not rounds_alike(tokens.shape[1])
        if few and tokens.device.type == "cpu" and not tokens.requires_grad:
            alone = [self._project_flat(row) for row in torch.split(tokens, 1)]
            sites = (zip(*site, strict=True) for site in zip(*alone, strict=True))
            return [(torch.cat(k), torch.cat(v)) for k, v in sites]
        weight = next(self._module.ip_adapter.parameters())
        if self._projection is not None:
            device = self._projection.weight.device
            device = self._attached.execution_device if device.type == "meta" else device
            tokens = self._projection(tokens.to(device, self._attached.dtype))
        key_values = self._module.key_values(tokens.to(weight.device, weight.dtype))
        dtype = self._attached.dtype  # read once: diffusers searches every module for it
        return [(k.to(dtype), v.to(dtype)) for k, v in key_values]

    def _split(self, key_values: Iterable[KeyValue]) -> list[KeyValue]:
        """[P, N, inner_dim] -> [P, H, N, D]; normalised where the variant does so, else views."""
        layers = zip(self._sites, self._norms, self._module.sites, strict=True)
        return [
            (
                _normalised(split_heads(k, site.heads), key_eps, getattr(layer, "norm_ip_k", None)),
                _normalised(split_heads(v, site.heads), value_eps, None),
            )
            for (k, v), (site, (key_eps, value_eps), layer) in zip(key_values, layers, strict=True)
        ]


class TokenCache(KVCache):
    """In the place of K', V', for adapters whose tokens follow those of the text: the tokens."""

    def key_values(self, prompt: ImagePrompt) -> list[KeyValue]:
        """One pair of equal tensors [2P, 1, N, W]; the null rows are zeros where there are none."""
        null = torch.zeros_like(prompt.tokens) if prompt.null_tokens is None else prompt.null_tokens
        rows = torch.cat((null, prompt.tokens))[:, None]
        return [(rows, rows)]

    def norms(self) -> None:
        """None: the base has its own."""


def _normalised(x: Tensor, eps: float | None, norm: Any) -> Tensor:
    if norm is not None:
        return norm_heads(x, norm.weight.to(x), NORM_EPS)
    return x if eps is None else norm_heads(x, None, eps)


def _autocast(device: torch.device) -> torch.dtype | None:
    """The dtype that autocast computes in on a device; None where it is off."""
    on = torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if on else None


def _with_null_rows(positive: list[KeyValue], negative: list[KeyValue] | None) -> list[KeyValue]:
    """The null rows first, [2P, H, N, D]; only the positive ones where there is no null."""
    if negative is None:
        return positive
    return [
        (torch.cat((nk, pk)), torch.cat((nv, pv)))
        for (nk, nv), (pk, pv) in zip(negative, positive, strict=True)
    ]
