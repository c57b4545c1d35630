"""Warm start of an adapter: its projector first learns to say what the captions say.

K', V' begin as copies of the text's K, V. Tokens equal to the text encoder's states of a caption
then do what these words would do, so a projector that comes close to such states has learned
everything that words can say before the denoiser, a hundred times dearer, is run at all. The paper
does not do this.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Pairs = Callable[[int], tuple[Tensor, Tensor]]
"""Step -> image features [b, ...], and the states [b, N, W] that their captions have."""

WARMUP = 100
DECAY = 0.6  # share of the steps over which the rate falls to nothing


def chosen_states(states: Tensor, length: int, tokens: int) -> Tensor:
    """The `tokens` states [b, N, W] that stand for captions of `length` tokens [b, L, W].

    `length` counts start and end. All states from the start where that is enough to fill N, padding
    included; otherwise N words, evenly spread up to the last one.
    """
    if tokens >= length:
        return states[:, :tokens]
    last = length - 2  # the end follows the last word
    return states[:, [round((i + 1) * last / tokens) for i in range(tokens)]]


def fit_projector_to_captions(
    projector: nn.Module,
    pairs: Pairs,
    steps: int,
    *,
    rate: float = 2e-3,
    on_progress: Callable[[int], None] = lambda step: None,
) -> float:
    """Teach the projector the states; returns the share of their variance left unexplained.

    The share is that of the last tenth of the steps, each batch measured before it is learned from.
    """
    weights = list(projector.parameters())
    optimiser = torch.optim.AdamW(weights, lr=rate, betas=(0.9, 0.99), weight_decay=0.01)
    error = spread = 0.0
    for step in range(steps):
        features, states = pairs(step)
        loss = F.mse_loss(projector(features), states)
        if step >= min(0.9 * steps, steps - 1):
            error += float(loss.detach())
            spread += float(states.var(dim=0, correction=0).mean())
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / WARMUP, (steps - step) / (DECAY * steps))
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        on_progress(step + 1)
    return error / spread
