"""The modules that are exported: tensors in, tensors out, no Python state.

Shapes: B batch, R image prompts, H heads, N image tokens, D head width, Q query positions, S places
where image terms are added.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from imageprompt.attention.compiled import traced
from imageprompt.attention.state import AttentionState
from imageprompt.core.spec import Entry
from imageprompt.generation.exported.calls import Calls
from imageprompt.generation.exported.manifest import Port, Reader
from imageprompt.hosts import host_of


@dataclass(frozen=True)
class Exportable:
    """A module with what exporters ask for."""

    module: nn.Module
    """Takes and returns tensors, in the order of the ports."""
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    sizes: Mapping[str, int]
    """Sizes of the named axes to trace with."""

    def example(self, seed: int = 0) -> tuple[Tensor, ...]:
        """Inputs to trace with."""
        gen = torch.Generator().manual_seed(seed)
        made = []
        for port in self.inputs:
            shape = [axis if isinstance(axis, int) else self.sizes[axis] for axis in port.shape]
            if port.dtype == "int64":
                made.append(torch.ones(shape, dtype=torch.int64))
            else:
                made.append(torch.rand(shape, generator=gen))
        return tuple(made)

    def at(self, sizes: Mapping[str, int]) -> Exportable:
        """The same for these sizes alone: no axis is left to a call."""
        sizes = {**self.sizes, **sizes}

        def fixed(port: Port) -> Port:
            shape = tuple(axis if isinstance(axis, int) else sizes[axis] for axis in port.shape)
            return replace(port, shape=shape)

        inputs, outputs = (tuple(map(fixed, ports)) for ports in (self.inputs, self.outputs))
        return Exportable(self.module, inputs, outputs, sizes)

    def axes(self) -> list[dict[int, str]]:
        """The named axes of every input."""
        return [
            {number: axis for number, axis in enumerate(port.shape) if isinstance(axis, str)}
            for port in self.inputs
        ]


class Denoiser(nn.Module):
    """A denoiser whose image prompts are inputs: scales [S, B, R], a mask [B, R, Q] for each level,
    then K', V' [B, R, H, N, D] of each place."""

    def __init__(
        self, denoiser: nn.Module, calls: Calls, state: AttentionState, places: Sequence[int]
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self._calls, self._state, self._places = calls, state, list(places)
        self._levels = sorted({state.levels[place] for place in places})

    def forward(self, *tensors: Tensor) -> Tensor:
        count = len(self._calls.inputs)
        named = dict(zip((one.name for one in self._calls.inputs), tensors, strict=False))
        scales, *rest = tensors[count:]
        masks = dict(zip(self._levels, rest, strict=False))
        key_values = rest[len(self._levels) :]
        for reader in self._state.readers:
            reader.slots = ()
        for number, place in enumerate(self._places):
            mask = masks[self._state.levels[place]]
            weight = (scales[number].unsqueeze(-1) * mask).unsqueeze(2).unsqueeze(-1)
            key, value = key_values[2 * number : 2 * number + 2]
            self._state.readers[place].slots = ((key, value, weight, None),)
        return self._calls.run(self.denoiser, named)


@contextmanager
def exportable_denoiser(
    denoiser: Any, calls: Calls, places: Container[tuple[str, Entry]], sizes: Mapping[str, int]
) -> Iterator[tuple[Exportable, tuple[Reader, ...]]]:
    """Inside the block the sites of `denoiser` read inputs; afterwards it is as it was.

    `places` are the places (site, entry) where image terms are added.
    """
    host = host_of(denoiser)
    spec, state = host.describe(denoiser), AttentionState()
    undo = host.install(denoiser, spec, state)
    try:
        numbers = [
            number
            for number, one in enumerate(state.readers)
            if one.site < len(spec.sites) and (spec.sites[one.site].name, one.entry) in places
        ]
        readers = tuple(
            Reader(
                site=spec.sites[state.readers[number].site].name,
                entry=state.readers[number].entry,
                level=state.levels[number],
                heads=spec.sites[state.readers[number].site].heads,
                head_dim=spec.sites[state.readers[number].site].inner_dim
                // spec.sites[state.readers[number].site].heads,
            )
            for number in numbers
        )
        levels = sorted({reader.level for reader in readers})
        ports = [one.port for one in calls.inputs]
        ports.append(Port(name="scales", shape=(len(readers), "batch", "prompts")))
        sizes = {**sizes, **{f"positions_{i}": calls.positions(sizes, i) for i in levels}}
        for level in levels:
            axis = f"positions_{level}"
            ports.append(Port(name=f"mask_{level}", shape=("batch", "prompts", axis)))
        for number, reader in enumerate(readers):
            shape = ("batch", "prompts", reader.heads, "tokens", reader.head_dim)
            ports += [Port(name=f"{kind}_{number}", shape=shape) for kind in ("key", "value")]
        out = Port(name="prediction", shape=ports[0].shape)
        module = Denoiser(denoiser, calls, state, numbers).eval()
        with traced(), torch.no_grad():
            yield Exportable(module, tuple(ports), (out,), sizes), readers
    finally:
        host.remove(undo)
