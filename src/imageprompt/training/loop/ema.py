"""What an optimiser is given and what it leaves: parameter groups, and their running averages."""

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
    plain: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    for name, parameter in parameters:
        if not parameter.requires_grad:
            continue
        free = parameter.ndim < 2 or "latents" in name or "embedding" in name or "norm" in name
        (plain if free else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": decay},
        {"params": plain, "weight_decay": 0.0},
    ]


class Ema:
    """Exponential running average of parameters, warmed up so that early steps do not dominate."""

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
        """Exactly the state that was saved."""
        self.updates = int(state["updates"])
        self.average = {name: value.clone() for name, value in state["average"].items()}


def put(values: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> None:
    """Write values into parameters of the same names."""
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(values[name])


@contextmanager
def averaged(parameters: Mapping[str, Tensor], ema: Ema | None) -> Iterator[None]:
    """While the block runs, parameters are their running averages, if there are any."""
    if ema is None:
        yield
        return
    kept = {name: value.detach().clone() for name, value in parameters.items()}
    put(ema.average, parameters)
    try:
        yield
    finally:
        put(kept, parameters)
