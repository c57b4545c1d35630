"""The attention processor of a UNet's sites, and which processors it may stand in for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from imageprompt.attention.decoupled import (
    Kernel,
    decoupled_attention,
    fused_kernel,
    merge_heads,
    split_heads,
)
from imageprompt.core.errors import AttachError
from imageprompt.core.spec import Site
from imageprompt.hosts._text_cache import TextCache

if TYPE_CHECKING:
    from imageprompt.attention.state import AttentionState


class SiteProcessor:
    """The attention processor of one site: text attention as before, plus the image terms.

    Not a module, so nothing of ours ever enters the denoiser's state dict. With no image prompt in
    use it hands over to the processor that was there.
    """

    def __init__(self, state: AttentionState, index: int, original: Any) -> None:
        self.state, self.index, self.original = state, index, original
        self._fused = not _is_plain_processor(original)
        self._text = TextCache()

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
        if not self.state.in_use:
            plain: Tensor = self.original(
                attn, hidden_states, encoder_hidden_states, attention_mask, temb, *args, **kwargs
            )
            return plain
        if encoder_hidden_states is None:
            raise AttachError(
                "this pipeline",
                reason="it gives its denoiser no text, and image tokens enter where text does",
                hint="Use a pipeline that works from words.",
            )
        residual = x = hidden_states
        if attn.spatial_norm is not None:
            x = attn.spatial_norm(x, temb)
        if x.ndim == 4:
            x = x.flatten(2).transpose(1, 2)
        if attn.group_norm is not None:
            x = attn.group_norm(x.transpose(1, 2)).transpose(1, 2)

        q = split_heads(attn.to_q(x), attn.heads)
        k, v = self._text.pair(attn, encoder_hidden_states, self.state.run)
        if attn.norm_q is not None:
            q = attn.norm_q(q)
        mask = _additive_mask(attn, attention_mask, encoder_hidden_states)
        images = self.state.terms(self.index, q)
        kernel = fused_kernel if self._fused else _plain_kernel(attn)
        x = decoupled_attention(q, k, v, images, mask=mask, kernel=kernel)

        x = attn.to_out[1](attn.to_out[0](merge_heads(x)))
        if residual.ndim == 4:
            x = x.transpose(-1, -2).reshape(residual.shape)
        if attn.residual_connection:
            x = x + residual
        if attn.rescale_output_factor != 1:  # dividing by 1 changes no bit, so it is left out
            x = x / attn.rescale_output_factor
        return cast(Tensor, x)


def _plain_kernel(attn: Any) -> Kernel:
    """The attention of diffusers' AttnProcessor, so that scale 0 equals it to the bit too."""

    def kernel(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        flat_mask = None if mask is None else mask.flatten(0, 1)
        weights = attn.get_attention_scores(q.flatten(0, 1), k.flatten(0, 1), flat_mask)
        return torch.bmm(weights, v.flatten(0, 1)).view(q.shape)

    return kernel


def _additive_mask(attn: Any, mask: Tensor | None, text: Tensor) -> Tensor | None:
    """The text's attention mask as [B, H, 1 or Q, T]; it covers the text tokens only."""
    if mask is None:
        return None
    batch, length = text.shape[:2]
    prepared: Tensor = attn.prepare_attention_mask(mask, length, batch)
    return prepared.view(batch, attn.heads, -1, prepared.shape[-1])


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
            reason="this attention layout is not described",
            hint="Use an SD1.5, SD2.x, SDXL or Kolors base.",
        )
