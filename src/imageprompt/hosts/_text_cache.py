"""K and V of the text, kept over a denoise loop for diffusers' attention layers."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from imageprompt.attention.decoupled import split_heads


class TextCache:
    """K and V of the text, kept over a denoise loop.

    Steps aside whenever keeping them could be wrong: gradients are on, the graph is being compiled,
    the text is another tensor or was written to, a new loop began, or to_k / to_v are more than
    plain linear layers (LoRA, quantised, hooked) or were changed.
    """

    def __init__(self) -> None:
        self._text: weakref.ref[Tensor] | None = None
        self._state: tuple[Any, ...] = ()
        self._pair: tuple[Tensor, Tensor] | None = None

    def pair(self, attn: Any, text: Tensor, run: int) -> tuple[Tensor, Tensor]:
        """K and V [B, H, T, D] of text states [B, T, C]."""
        if torch.compiler.is_compiling():
            return _text_pair(attn, text)
        if not _cacheable(attn, text):
            self._forget()
            return _text_pair(attn, text)
        weights = (attn.to_k.weight, attn.to_v.weight)
        state = (run, text._version, *((w.data_ptr(), w._version) for w in weights))
        known = self._text is not None and self._text() is text and self._state == state
        if self._pair is None or not known:
            self._pair = _text_pair(attn, text)
            self._text = weakref.ref(text, lambda _: self._forget())
            self._state = state
        return self._pair

    def _forget(self) -> None:
        self._text, self._pair = None, None


def _text_pair(attn: Any, text: Tensor) -> tuple[Tensor, Tensor]:
    if attn.norm_cross:
        text = attn.norm_encoder_hidden_states(text)
    k = split_heads(attn.to_k(text), attn.heads)
    v = split_heads(attn.to_v(text), attn.heads)
    return (k if attn.norm_k is None else attn.norm_k(k)), v


def _cacheable(attn: Any, text: Tensor) -> bool:
    return (
        not torch.is_grad_enabled()
        and not text.is_inference()  # writes to inference tensors leave no trace
        and not torch.is_autocast_enabled(text.device.type)
        and not attn.norm_cross
        and attn.norm_k is None
        and all(_is_plain(layer) for layer in (attn.to_k, attn.to_v))
    )


def _is_plain(layer: Any) -> bool:
    """A linear layer whose call is its weights and nothing else."""
    return (
        type(layer) is nn.Linear
        and not layer._forward_hooks
        and not layer._forward_pre_hooks
        and "forward" not in layer.__dict__  # accelerate's offloading replaces it
    )
