"""The frozen text tower of the bundled stack, as the SD3 pipeline reads it: twice, side by side."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from bundled_stack.base import Captions
from imageprompt.core import bundled


class TextStates(NamedTuple):
    """Token states [n, 24, 256], and one pooled vector for each text [n, 256]."""

    tokens: Tensor
    pooled: Tensor


def text_tower() -> Any:
    """The bundled text tower with an identity projection, which the SD3 pipeline demands."""
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    bare = CLIPTextModel.from_pretrained(bundled.folder() / "text_encoder")
    tower = CLIPTextModelWithProjection(bare.config)
    state = {f"text_model.{name}": value for name, value in bare.state_dict().items()}
    state["text_projection.weight"] = torch.eye(bare.config.hidden_size)
    tower.load_state_dict(state)
    return tower.eval().requires_grad_(False)


class CaptionEncoder:
    """Text states of captions."""

    def __init__(self) -> None:
        self.captions, self.tower = Captions(), text_tower()

    @torch.no_grad()
    def __call__(self, lines: list[str]) -> TextStates:
        """The states of the layer before the last, and the pooled vector; each doubled."""
        tokens = torch.tensor([self.captions.encode(line) for line in lines])
        out = self.tower(tokens, output_hidden_states=True)
        states, pooled = out.hidden_states[-2], out.text_embeds
        return TextStates(torch.cat([states, states], 2), torch.cat([pooled, pooled], 1))
