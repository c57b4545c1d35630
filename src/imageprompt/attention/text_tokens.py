"""Image tokens that follow those of the text, and how much attention they draw.

A weight w adds log w to the attention scores of a token's key, so the token counts w times. Its
own scale, then: tokens multiplied by a number near 0 would still draw attention.

Shapes: B batch, N image tokens, W width of the text, Q positions of the picture, S rows in
attention: text, image tokens of each prompt, picture, and pictures to edit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from imageprompt.control.controls import Controls
from imageprompt.core.errors import OptionError

SCALINGS = ("V only", "K+V")


@dataclass(frozen=True)
class TextTokens:
    """What one image prompt appends to the text of a call.

    `tokens` [B, N, W]; `weight` is what they count for rows of the picture, [1 or B, 1 or Q] in
    float32, None for 1. Other rows take its mean.
    """

    tokens: Tensor
    weight: Tensor | None


def attention_bias(
    terms: Sequence[TextTokens], text: int, picture: int, rows: int, like: Tensor
) -> Tensor | None:
    """What is added to attention scores, [1 or B, 1, S, S]; None where every weight is 1.

    `text` is the number of tokens before those of `terms`, `picture` that of the picture's
    positions, which `rows` includes. The tokens of one prompt attend to one another as they are.
    """
    weights = [term.weight for term in terms if term.weight is not None]
    if not weights:
        return None
    total = text + sum(term.tokens.shape[1] for term in terms) + rows
    bias = like.new_zeros(max(map(len, weights)), total, total)
    first = text
    for term in terms:
        last = first + term.tokens.shape[1]
        if term.weight is not None:
            scores = term.weight.mean(1).log().to(bias)[:, None, None]
            bias[:, :, first:last] = scores
            if term.weight.shape[1] > 1:
                start = total - rows
                scores = term.weight.log().to(bias)[:, :, None]
                bias[:, start : start + picture, first:last] = scores
            bias[:, first:last, first:last] = 0
        first = last
    return bias[:, None]


def branch_weights(
    numbers: Sequence[float], rows: int, mask: Tensor | None, device: torch.device
) -> Tensor | None:
    """`TextTokens.weight` from the number of each branch of a batch of `rows` and a region's mask
    [1 or B, 1, Q, 1]; None where it is 1."""
    if mask is None and set(numbers) == {1.0}:
        return None
    weight = torch.tensor(numbers, device=device)[:, None]
    weight = (
        weight[:1]
        if len(set(numbers)) == 1
        else weight.repeat_interleave(rows // len(numbers), dim=0)
    )
    return weight if mask is None else weight * mask[:, 0, :, 0].clamp(min=0)


def check_controls(controls: Controls) -> None:
    """Raises OptionError for controls by site, which tokens beside the text do not have."""
    number = isinstance(controls.scale, int | float)
    if controls.preset is not None or not number:
        what = f"scale = {controls.scale!r}" if controls.preset is None else controls.preset
        raise OptionError(
            what if controls.preset is None else f"preset {what!r}",
            reason="this adapter's tokens follow those of the text, which every layer reads",
            hint="Give one number: scale=0.5.",
        )
    if controls.scaling not in SCALINGS:
        raise OptionError(
            f"scaling {controls.scaling!r}",
            reason="this adapter's tokens follow those of the text and have no K' and V' of "
            "their own",
            hint=f"Use {SCALINGS[0]!r} (the attention that they draw) or {SCALINGS[1]!r} (the "
            "tokens themselves).",
        )
