"""The text of a transformer's calls as a place where image tokens are appended."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from imageprompt.attention.text_tokens import attention_bias
from imageprompt.core.spec import Arguments, Call, KeywordArguments
from imageprompt.hosts._transformer_sites import Place

if TYPE_CHECKING:
    from imageprompt.attention.state import AttentionState

Changed = tuple[Arguments, KeywordArguments]
AppendText = Callable[[Arguments, KeywordArguments, Tensor, "Tensor | None"], Changed]
"""(arguments, tokens [B, N, W], scores [1 or B, 1, S, S] or None) -> arguments of a longer text."""


class TextPlace(Place):
    """Where image tokens follow those of the text."""

    def __init__(self, state: AttentionState, site: int, append: AppendText) -> None:
        super().__init__(state, len(state.readers), site, "text")
        self._append = append
        self._bias: tuple[Any, Tensor | None] = (None, None)

    def extend(self, args: Arguments, kwargs: KeywordArguments, call: Call) -> Changed | None:
        """The arguments of a call with the tokens of the prompts in use; None without any."""
        prompts = self.state.current
        terms = [prompt.text_tokens(self.number, self.state.positions) for prompt in prompts]
        acting = [term for term in terms if term is not None]
        if not acting or call.text is None:
            return None
        text, rows = call.text.shape[1], call.sample.shape[1]
        key = (text, rows, *(prompt.contribution for prompt in prompts))
        if self._bias[0] != key:
            bias = attention_bias(acting, text, self.state.positions, rows, call.sample)
            self._bias = (key, bias)
        tokens = torch.cat([term.tokens for term in acting], dim=1).to(call.text)
        return self._append(args, kwargs, tokens, self._bias[1])
