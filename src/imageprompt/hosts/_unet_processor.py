"""The attention processor of a UNet's sites, and which processors it can replace."""

from __future__ import annotations

import copy
import weakref
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from imageprompt.attention.compiled import Slots, reads_slots, slot_terms
from imageprompt.attention.decoupled import (
    Kernel,
    KeyValue,
    decoupled_attention,
    fused_kernel,
    merge_heads,
    split_heads,
)
from imageprompt.core.errors import AttachError
from imageprompt.core.spec import Entry, Site

if TYPE_CHECKING:
    from imageprompt.attention.state import AttentionState


class SiteProcessor:
    """The attention processor of one site: text attention as before, plus the image terms.

    It is not a module, so nothing of ours enters the denoiser's state dict. While no image prompt
    is in use it calls the processor that it replaced. Its copy, and what its pickle restores, is a
    copy of that one: copies of a denoiser are not attached.
    """

    entry: Entry = "attention"
    references = 0

    def __new__(cls, *args: Any) -> Any:
        """Without arguments, diffusers' own processor: `unload_ip_adapter()` makes it so."""
        if not args:
            from diffusers.models.attention_processor import AttnProcessor2_0

            return AttnProcessor2_0()
        return super().__new__(cls)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self.original, memo)

    def __reduce__(self) -> Any:
        return copy.copy, (self.original,)

    def __init__(self, state: AttentionState, index: int, original: Any) -> None:
        self.state, self.site, self.original = state, index, original
        self._fused = not _is_plain_processor(original)
        self._text_cache = TextCache()
        self.slots: Slots = ()
        """What a graph reads here: plain tensors, the same for every site of a kind."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        compiling = reads_slots()
        if self.slots == () if compiling else not self.state.active:
            plain: Tensor = self.original(
                attn, hidden_states, encoder_hidden_states, attention_mask, temb, *args, **kwargs
            )
            return plain
        if encoder_hidden_states is None:
            raise AttachError(
                "this pipeline",
                reason="calls its denoiser without text, where image tokens would enter",
                hint="Use a pipeline with a text prompt.",
            )
        residual = x = hidden_states
        if attn.spatial_norm is not None:
            x = attn.spatial_norm(x, temb)
        if x.ndim == 4:
            x = x.flatten(2).transpose(1, 2)
        if attn.group_norm is not None:
            x = attn.group_norm(x.transpose(1, 2)).transpose(1, 2)

        q = split_heads(attn.to_q(x), attn.heads)
        k, v = self._text_key_value(attn, encoder_hidden_states)
        if attn.norm_q is not None:
            q = attn.norm_q(q)
        mask = _additive_mask(attn, attention_mask, encoder_hidden_states)
        terms = slot_terms(self.slots, q) if compiling else self.state.terms(self.site, q)
        kernel = fused_kernel if self._fused else _plain_kernel(attn)
        x = decoupled_attention(q, k, v, terms, mask=mask, kernel=kernel)

        x = attn.to_out[1](attn.to_out[0](merge_heads(x)))
        if residual.ndim == 4:
            x = x.transpose(-1, -2).reshape(residual.shape)
        if attn.residual_connection:
            x = x + residual
        if attn.rescale_output_factor != 1:  # dividing by 1 changes no bit, so it is left out
            x = x / attn.rescale_output_factor
        return cast(Tensor, x)

    def _text_key_value(self, attn: Any, text: Tensor) -> KeyValue:
        """A graph computes K and V of the text itself, as without an adapter."""
        if reads_slots():
            return _text_key_value(attn, text)
        return self._text_cache.key_value(attn, text, self.state.epoch)


def _plain_kernel(attn: Any) -> Kernel:
    """The attention of diffusers' AttnProcessor, so that scale 0 equals it bit for bit too."""

    def kernel(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        flat_mask = None if mask is None else mask.flatten(0, 1)
        weights = attn.get_attention_scores(q.flatten(0, 1), k.flatten(0, 1), flat_mask)
        return torch.bmm(weights, v.flatten(0, 1)).view(q.shape)

    return kernel


def _additive_mask(attn: Any, mask: Tensor | None, text: Tensor) -> Tensor | None:
    """The attention mask of the text, [B, H, 1 or Q, T]; it covers text tokens only."""
    if mask is None:
        return None
    batch, length = text.shape[:2]
    additive: Tensor = attn.prepare_attention_mask(mask, length, batch)
    return additive.view(batch, attn.heads, -1, additive.shape[-1])


def _is_plain_processor(processor: Any) -> bool:
    from diffusers.models.attention_processor import AttnProcessor

    return type(processor) is AttnProcessor


def check_replaceable(site: Site, layer: Any) -> None:
    """Only processors whose arithmetic we reproduce may be replaced. Raises AttachError."""
    from diffusers.models.attention_processor import AttnProcessor2_0

    processor = layer.processor
    if type(processor) is not AttnProcessor2_0 and not _is_plain_processor(processor):
        raise AttachError(
            f"attention processor {type(processor).__name__} at {site.name}",
            reason="an adapter replaces only AttnProcessor2_0 and AttnProcessor",
            hint="Unload other adapters (pipe.unload_ip_adapter()), undo fused or sliced "
            "attention, or call unet.set_attn_processor(AttnProcessor2_0()).",
        )
    if layer.added_kv_proj_dim is not None:
        raise AttachError(
            f"{site.name} with added key/value projections",
            reason="this kind of attention is not supported",
            hint="Use an SD1.5, SD2.x, SDXL or Kolors base.",
        )


# ── K and V of the text ─────────────────────────────────────────────────────────────────────────


class TextCache:
    """K and V of the text at one attention layer, kept over a denoise loop.

    Computes them anew wherever a cached result could be wrong: gradients are on, a graph is being
    compiled, the text is another tensor or was written to, a new loop began, or to_k / to_v are
    more than plain linear layers (LoRA, quantised, hooked) or have changed. What the timesteps of a
    loop look like does not matter.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[weakref.ref[Tensor], tuple[Any, ...], KeyValue]] = []

    def key_value(self, attn: Any, text: Tensor, epoch: int) -> KeyValue:
        """K and V [B, H, T, D] of text states [B, T, C]; those of another `epoch` are stale."""
        if not _is_cacheable(attn, text):
            self._forget()
            return _text_key_value(attn, text)
        weights = (attn.to_k.weight, attn.to_v.weight)
        key = (epoch, text._version, *((w.data_ptr(), w._version) for w in weights))
        for reference, known, key_value in self._kept:
            if reference() is text and known == key:
                return key_value
        key_value = _text_key_value(attn, text)
        # the two sides of guidance may have a call each, so two texts are kept
        fresh = [one for one in self._kept if one[1][0] == epoch and one[0]() is not text]
        self._kept = [*fresh[-1:], (weakref.ref(text, self._drop), key, key_value)]
        return key_value

    def _drop(self, reference: weakref.ref[Tensor]) -> None:
        self._kept = [one for one in self._kept if one[0] is not reference]

    def _forget(self) -> None:
        self._kept = []


def _text_key_value(attn: Any, text: Tensor) -> tuple[Tensor, Tensor]:
    if attn.norm_cross:
        text = attn.norm_encoder_hidden_states(text)
    k = split_heads(attn.to_k(text), attn.heads)
    v = split_heads(attn.to_v(text), attn.heads)
    return (k if attn.norm_k is None else attn.norm_k(k)), v


def _is_cacheable(attn: Any, text: Tensor) -> bool:
    return (
        not torch.is_grad_enabled()
        and not text.is_inference()  # inference tensors do not count writes
        and not torch.is_autocast_enabled(text.device.type)
        and not attn.norm_cross
        and attn.norm_k is None
        and all(_is_plain_linear(layer) for layer in (attn.to_k, attn.to_v))
    )


def _is_plain_linear(layer: Any) -> bool:
    """A linear layer whose result depends on its weights and nothing else."""
    return (
        type(layer) is nn.Linear
        and not layer._forward_hooks
        and not layer._forward_pre_hooks
        and "forward" not in layer.__dict__  # accelerate's offloading replaces it
    )
