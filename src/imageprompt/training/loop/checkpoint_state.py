"""What a checkpoint holds of a run: weights, optimiser and running average, exactly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imageprompt.core.atomic_files import write_atomically
from imageprompt.core.errors import OptionError
from imageprompt.training.loop.checkpoints import ADAPTER, STATE, Writers
from imageprompt.training.loop.ema import Ema


def writers(
    adapter: Any, named: Mapping[str, nn.Parameter], optimiser: Any, ema: Ema | None
) -> Writers:
    """What writes the two files of a checkpoint."""
    return {
        ADAPTER: adapter.save,
        STATE: lambda path: _write_state(path, state_of(named, optimiser, ema)),
    }


def state_of(
    named: Mapping[str, nn.Parameter], optimiser: Any, ema: Ema | None
) -> dict[str, Tensor]:
    """`optimiser.NAME.KEY` and `ema.NAME`, on the CPU."""
    tensors = {
        f"optimiser.{name}.{key}": value
        for name, parameter in named.items()
        for key, value in optimiser.state.get(parameter, {}).items()
    }
    average = ema.average.items() if ema else ()
    tensors |= {f"ema.{name}": value for name, value in average}
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def restore(
    folder: Path,
    named: Mapping[str, nn.Parameter],
    optimiser: Any,
    ema: Ema | None,
    ema_updates: int,
) -> None:
    """Put a checkpoint back, to the bit. Raises OptionError if it is of another adapter."""
    from safetensors.torch import load_file

    weights, state = load_file(folder / ADAPTER), load_file(folder / STATE)
    told = {name: tuple(value.shape) for name, value in named.items()}
    if {name: tuple(value.shape) for name, value in weights.items()} != told:
        raise OptionError(
            f"checkpoint {folder}",
            reason="it is of an adapter with other tensors than this config asks for",
            hint="Use the config that it was made with, or another output folder.",
        )
    averages = {name for name in state if name.startswith("ema.")}
    if ema is not None and len(averages) != len(named):
        raise OptionError(
            f"checkpoint {folder}",
            reason="it holds no running average, and the config asks for one",
            hint="Go on with `ema: 0`, or start anew in another output folder.",
        )
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(weights[name])
            optimiser.state[parameter] = _of(parameter, f"optimiser.{name}.", state)
            if ema is not None:
                ema.average[name].copy_(state[f"ema.{name}"])
    if ema is not None:
        ema.updates = ema_updates


def _of(parameter: Tensor, prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value.to(parameter.device)
        for name, value in state.items()
        if name.startswith(prefix)
    }


def _write_state(path: Path, tensors: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    with write_atomically(path) as temporary:
        save_file(tensors, temporary)
