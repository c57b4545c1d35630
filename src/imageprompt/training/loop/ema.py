"""Optimiser parameter groups, and the exponential moving average (EMA) of parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def decay_groups(
    parameters: Iterable[tuple[str, nn.Parameter]], decay: float
) -> list[dict[str, Any]]:
    """Two optimiser groups: weight matrices decay; norms, biases, embeddings and latents do not."""
    decayed: list[nn.Parameter] = []
    not_decayed: list[nn.Parameter] = []
    for name, parameter in parameters:
        if not parameter.requires_grad:
            continue
        exempt = parameter.ndim < 2 or "latents" in name or "embedding" in name or "norm" in name
        (not_decayed if exempt else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": decay},
        {"params": not_decayed, "weight_decay": 0.0},
    ]


class Ema:
    """Exponential moving average of parameters, with a warm-up for the early steps.

    The decay of update n is min(decay, (1 + n) / (10 + n)).
    """

    def __init__(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.average = {name: value.detach().clone() for name, value in parameters.items()}

    @torch.no_grad()
    def update(self, parameters: Mapping[str, Tensor]) -> None:
        """Move the average towards `parameters` (same names as at the start)."""
        self.updates += 1
        rate = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        names = list(self.average)
        torch._foreach_lerp_(
            [self.average[name] for name in names],
            [parameters[name].detach() for name in names],
            rate,
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {"updates": self.updates, "average": self.average}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore exactly what `state_dict` returned."""
        self.updates = int(state["updates"])
        self.average = {name: value.clone() for name, value in state["average"].items()}


def copy_into(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy values into the parameters of the same names."""
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(values[name])


@contextmanager
def ema_weights(parameters: Mapping[str, Tensor], ema: Ema | None) -> Iterator[None]:
    """Inside the block the parameters hold their averages; without an EMA nothing changes."""
    if ema is None:
        yield
        return
    original = {name: value.detach().clone() for name, value in parameters.items()}
    copy_into(parameters, ema.average)
    try:
        yield
    finally:
        copy_into(parameters, original)
