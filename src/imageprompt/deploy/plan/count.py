"""Parameters, floating-point operations and memory of a model, counted without weights.

Models are on the meta device. Attention is counted as fused: no matrix of scores is kept.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from imageprompt.deploy.plan.allocator import Block, CachingAllocator
from imageprompt.deploy.plan.curve import Curve

DTYPE = torch.bfloat16
"""Memory is counted at two bytes a value."""


@dataclass(frozen=True)
class Cost:
    """Of one call."""

    flops: float
    bytes: float
    """The most that it keeps at once beside the weights, with 2 bytes a value."""
    copying: float
    """The same where convolutions copy their input and output into another order of channels."""


def parameters(model: nn.Module) -> int:
    """How many weights a model has; shared ones count once."""
    return sum(weight.numel() for weight in model.parameters())


def cost(model: nn.Module, call: Callable[[], Any]) -> Cost:
    """Operations and memory of a call of a model on the meta device."""
    live = _LiveBytes([*model.parameters(), *model.buffers()])
    counter = FlopCounterMode(display=False)
    attention = _FusedAttention()
    with torch.no_grad(), attention, counter, live:
        call()
    return Cost(counter.get_total_flops() + attention.flops, live.peak, live.copying)


def cost_by_area(model: nn.Module, call: Callable[[int], Any], sides: Sequence[int]) -> list[Curve]:
    """The curves of operations, memory and memory with copies, through three sizes.

    `call` takes the side in pixels.
    """
    costs = [cost(model, lambda side=side: call(side)) for side in sides]  # type: ignore[misc]
    areas = [side * side / 1e6 for side in sides]
    return [
        Curve.through(areas, [one.flops for one in costs]),
        Curve.through(areas, [one.bytes for one in costs]),
        Curve.through(areas, [one.copying for one in costs]),
    ]


@dataclass(frozen=True)
class Reserved:
    """Bytes that PyTorch reserves on a card for calls, beside the weights: it keeps what they
    leave."""

    bytes: int
    copying: int
    """The same where convolutions copy their input and output into another order of channels."""


def reserved(models: Sequence[nn.Module], calls: Sequence[Callable[[], Any]]) -> Reserved:
    """Of calls one after the other."""
    known = [one for model in models for one in (*model.parameters(), *model.buffers())]
    watched = _Reservations(known)
    with torch.no_grad(), _FusedAttention(), watched:
        for call in calls:
            call()
    return Reserved(watched.plain.reserved, watched.copying.reserved)


class _FusedAttention(TorchFunctionMode):
    """Replaces attention by an empty result of its shape, and counts its two products."""

    flops = 0.0

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is not scaled_dot_product_attention:
            return function(*args, **(kwargs or {}))
        query, key, value = (
            args[:3] if len(args) >= 3 else map(kwargs.get, ("query", "key", "value"))
        )
        rows, columns = query.shape[:-1].numel(), key.shape[-2]
        self.flops += 2 * rows * columns * (query.shape[-1] + value.shape[-1])
        return query.new_empty((*query.shape[:-1], value.shape[-1]))


class _Storages(TorchDispatchMode):
    """Hears of every storage that is made and dropped, beside those that are known."""

    def __init__(self, known: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seen = weakref.WeakSet(tensor.untyped_storage() for tensor in known)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, list | tuple) else [made]:
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        if function is torch.ops.aten.convolution.default:
            self.copied(args[0].nbytes, made.nbytes)
        return made

    def _see(self, storage: torch.UntypedStorage) -> None:
        if storage in self._seen:
            return
        self._seen.add(storage)
        weakref.finalize(storage, self.dropped, self.made(storage.nbytes()))

    def made(self, size: int) -> Any:
        """Returns what `dropped` is given at its end."""
        raise NotImplementedError

    def dropped(self, held: Any) -> None:
        raise NotImplementedError

    def copied(self, *sizes: int) -> None:
        """A convolution copies its input and output into another order of channels."""
        raise NotImplementedError


class _LiveBytes(_Storages):  # type: ignore[no-untyped-call]
    """The most bytes of tensors that live at once, beside those that are known."""

    def __init__(self, known: Sequence[Tensor]) -> None:
        super().__init__(known)
        self._live = self.peak = self.copying = 0

    def made(self, size: int) -> int:
        self._live += size
        self.peak = max(self.peak, self._live)
        self.copying = max(self.copying, self._live)
        return size

    def dropped(self, held: int) -> None:
        self._live -= held

    def copied(self, *sizes: int) -> None:
        self.copying = max(self.copying, self._live + sum(sizes))


class _Reservations(_Storages):  # type: ignore[no-untyped-call]
    """What PyTorch's caching allocator takes from a card for them, without copies and with."""

    def __init__(self, known: Sequence[Tensor]) -> None:
        super().__init__(known)
        self.plain, self.copying = CachingAllocator(), CachingAllocator()

    def made(self, size: int) -> tuple[Block, Block]:
        return self.plain.take(size), self.copying.take(size)

    def dropped(self, held: tuple[Block, Block]) -> None:
        self.plain.give_back(held[0])
        self.copying.give_back(held[1])

    def copied(self, *sizes: int) -> None:
        for block in [self.copying.take(size) for size in sizes]:
            self.copying.give_back(block)
