"""A run in memory: optimiser groups, running averages (EMA), and what a checkpoint holds of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imageprompt.checkpoint.torch_io import write_file
from imageprompt.core.errors import AdapterFileError, NotFoundError, OptionError
from imageprompt.core.yaml_file import brief

ADAPTER, STATE = "adapter.safetensors", "state.safetensors"


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


# ── checkpoints ───────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class TrainingState:
    """What a checkpoint saves and restores: the adapter, its parameters, optimiser and EMA."""

    adapter: Any
    parameters: Mapping[str, nn.Parameter]
    optimiser: Any
    ema: Ema | None

    def save(self, folder: Path) -> None:
        """Write the weights and the state into a folder."""
        self.adapter.save(folder / ADAPTER)
        write_file(folder / STATE, self.tensors(), {})

    def tensors(self) -> dict[str, Tensor]:
        """`optimiser.NAME.KEY` and `ema.NAME`, on the CPU."""
        tensors = {
            f"optimiser.{name}.{key}": value
            for name, parameter in self.parameters.items()
            for key, value in self.optimiser.state.get(parameter, {}).items()
        }
        if self.ema is not None:
            tensors |= {f"ema.{name}": value for name, value in self.ema.average.items()}
        return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}

    def restore(self, folder: Path, step: int, ema_updates: int) -> None:
        """Restore a checkpoint of this step to the bit.

        Raises OptionError if it belongs to another adapter, or holds what no run writes.
        """
        from safetensors.torch import load_file

        self._check_tensors(folder)
        weights, state = load_file(folder / ADAPTER), load_file(folder / STATE)
        _check_numbers(folder, weights | state, step)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(weights[name])
                prefix = f"optimiser.{name}."
                self.optimiser.state[parameter] = {
                    key.removeprefix(prefix): value.to(parameter.device)
                    for key, value in state.items()
                    if key.startswith(prefix)
                }
                if self.ema is not None:
                    self.ema.average[name].copy_(state[f"ema.{name}"])
        if self.ema is not None:
            self.ema.updates = ema_updates

    def _check_tensors(self, folder: Path) -> None:
        """Compare names, types and shapes with those of this run before a tensor is read.

        The optimiser's native code trusts them. Raises OptionError.
        """
        wanted = {name: _kind_of(value) for name, value in self.parameters.items()}
        if _kinds_in(folder / ADAPTER) != wanted:
            raise OptionError(
                f"checkpoint {folder}",
                reason="its tensors are not those of the adapter in this config",
                hint="Use the config it was made with, or another output folder.",
            )
        found = _kinds_in(folder / STATE)
        averages = {name for name in found if name.startswith("ema.")}
        if self.ema is not None and not averages:
            raise OptionError(
                f"checkpoint {folder}",
                reason="has no running average (EMA), but the config asks for one",
                hint="Resume with `ema: 0`, or start in another output folder.",
            )
        expected = {f"ema.{name}": kind for name, kind in wanted.items()} if averages else {}
        for name, kind in wanted.items():
            own = {f"optimiser.{name}.{key}": kind for key in _MOMENTS}
            own[f"optimiser.{name}.step"] = _SCALAR
            if found.keys() & own.keys():  # a parameter without a gradient has no state
                expected |= own
        if found != expected:
            names = {*found, *expected}
            wrong = next(name for name in sorted(names) if found.get(name) != expected.get(name))
            raise OptionError(
                f"checkpoint {folder}",
                reason=f"{STATE} does not fit the adapter: {brief(wrong)} is "
                f"{_shown(found.get(wrong))}, not {_shown(expected.get(wrong))}",
                hint=_REMOVE,
            )


Kind = tuple[str, tuple[int, ...]]
"""Type and shape of a tensor."""
_SCALAR: Kind = ("float32", ())
_MOMENTS = ("exp_avg", "exp_avg_sq")
_REMOVE = "Delete its folder; the one before is used then."


def _kind_of(tensor: Tensor) -> Kind:
    return str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)


def _kinds_in(path: Path) -> dict[str, Kind]:
    """Of the tensors in a file, by its header. Raises OptionError."""
    from imageprompt.checkpoint.read.file import open_safetensors
    from imageprompt.checkpoint.read.stored_tensor import torch_dtype_name

    try:
        tensors = open_safetensors(path).tensors
    except (AdapterFileError, NotFoundError) as error:
        raise OptionError(f"checkpoint {path}", reason=error.reason, hint=_REMOVE) from error
    return {name: (torch_dtype_name(one.dtype), one.shape) for name, one in tensors.items()}


def _shown(kind: Kind | None) -> str:
    return "missing" if kind is None else f"{kind[0]} {list(kind[1])}"


def _check_numbers(folder: Path, tensors: Mapping[str, Tensor], step: int) -> None:
    """Raises OptionError for numbers that no run has written."""
    for name, tensor in tensors.items():
        counted = name.startswith("optimiser.") and name.endswith(".step")
        squares = name.startswith("optimiser.") and name.endswith(".exp_avg_sq")
        if (
            not torch.isfinite(tensor).all()
            or (squares and bool((tensor < 0).any()))
            or (counted and not 0 <= float(tensor) <= step)
        ):
            raise OptionError(
                f"checkpoint {folder}",
                reason=f"{brief(name)} has numbers that no run writes",
                hint=_REMOVE,
            )
