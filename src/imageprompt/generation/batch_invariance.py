"""A picture of a batch equals the picture of its request alone, to the bit, on a CPU in float32.

PyTorch's kernels add up in another order for few rows than for many: a matrix product of fewer than
twelve rows, a convolution of one small picture (not by oneDNN), a pointwise convolution of fewer
than 16 rows in one thread (the same), a normalisation over groups of rows whose channels lie side
by side, in several threads. An autoencoder's attention reads its picture as a transposed view, and
must copy several; experts get as many rows as choose them; text is pooled by one row a prompt. In a
batch of n pictures such layers get their rows in parts as large as one picture's; everything else,
where nearly all the time goes, gets them together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from imageprompt.adapter.kv_cache import rounds_alike

_pictures: ContextVar[int] = ContextVar("pictures of the batch", default=1)

_ONEDNN_ROWS = 16
"""In one thread, PyTorch's own kernel computes pointwise convolutions with fewer rows."""
_ONEDNN_NUMBERS = 20480
"""The same kernel computes a convolution of one row with at most as many numbers."""


@contextmanager
def batch_invariant(pipe: Any, pictures: int) -> Iterator[None]:
    """While the block runs, each of `pictures` rounds as alone. Changes nothing on other devices.

    A denoiser that is compiled is left as it is, and its pictures are the same up to rounding.
    """
    modules = [one for one in pipe.components.values() if isinstance(one, nn.Module)]
    if any(_is_compiled(one) for module in modules for one in module.modules()):
        yield
        return
    layers: dict[Any, Any] = {}  # once each: pipelines may have one model in two places
    for module in modules:
        layers |= _layers(module)
    for layer, kind in layers.items():
        layer.__class__ = kind
    token = _pictures.set(pictures)
    try:
        yield
    finally:
        _pictures.reset(token)
        for layer in layers:
            layer.__class__ = type(layer).__bases__[-1]


def _layers(
    module: nn.Module, in_autoencoder: bool = False
) -> Iterator[tuple[nn.Module, type[nn.Module]]]:
    """The layers whose rows may round by how many there are, and the class of each meanwhile.

    A denoiser's attention gets sequences, and stays as it is: caches and LoRA know its layers.
    """
    in_autoencoder = in_autoencoder or hasattr(module, "decode")
    for child in module.children():
        attends = hasattr(child, "to_q")
        pools = hasattr(child, "positional_embedding") and hasattr(child, "q_proj")
        chooses = isinstance(getattr(child, "experts", None), nn.ModuleList)
        if pools or chooses or (attends and in_autoencoder):
            yield child, type("_Whole", (_Whole, type(child)), {})
        elif not attends:
            if type(child) in _KINDS:
                yield child, _KINDS[type(child)]
            yield from _layers(child, in_autoencoder)


def _is_compiled(module: nn.Module) -> bool:
    return hasattr(module, "_orig_mod") or module._compiled_call_impl is not None


class _Linear(nn.Linear):
    """A linear layer whose rows round as those of one picture do."""

    def forward(self, x: Tensor) -> Tensor:
        pictures = _pictures.get()
        alone = x[..., 0].numel() // pictures
        if rounds_alike(alone) or not _splits(x, pictures):
            return super().forward(x)
        return _each_alone(super().forward, x, pictures)


class _Whole(nn.Module):
    """A module of one input that computes every picture alone."""

    def forward(self, *args: Any, **options: Any) -> Any:
        forward, pictures = super().forward, _pictures.get()
        tensors = [one for one in (*args, *options.values()) if isinstance(one, Tensor)]
        first = len(tensors) == 1 and bool(args) and tensors[0] is args[0]
        if not first or not _splits(args[0], pictures):
            return forward(*args, **options)
        rest = args[1:]
        made = _each_alone(lambda x: forward(x.contiguous(), *rest, **options), args[0], pictures)
        # channels side by side count as contiguous in one picture, and are computed on so
        return made.contiguous()


class _GroupNorm(nn.GroupNorm):
    """A normalisation whose rows round as those of one picture do."""

    def forward(self, x: Tensor) -> Tensor:
        pictures = _pictures.get()
        if x.is_contiguous() or torch.get_num_threads() == 1 or not _splits(x, pictures):
            return super().forward(x)
        return _each_alone(super().forward, x, pictures)


class _Conv2d(nn.Conv2d):
    """A convolution whose rows round as those of one picture do."""

    def forward(self, x: Tensor) -> Tensor:
        pictures = _pictures.get()
        if not _splits(x, pictures) or (rows := self._rows(x, len(x) // pictures)) >= len(x):
            return super().forward(x)
        return torch.cat([super(_Conv2d, self).forward(part) for part in torch.split(x, rows)])

    def _rows(self, x: Tensor, alone: int) -> int:
        """How many rows may be computed together, if one picture has `alone`."""
        pointwise = self.kernel_size == self.stride == self.dilation == (1, 1)
        if pointwise and torch.get_num_threads() == 1:
            return len(x) if alone >= _ONEDNN_ROWS else alone * ((_ONEDNN_ROWS - 1) // alone)
        numbers = x[0].numel()
        small = alone == 1 and self.groups == 1 and numbers <= _ONEDNN_NUMBERS
        return 1 if small and min(self.kernel_size) <= 3 else len(x)


_KINDS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: _Linear,
    nn.Conv2d: _Conv2d,
    nn.GroupNorm: _GroupNorm,
}


def _each_alone(layer: Callable[[Tensor], Tensor], x: Tensor, pictures: int) -> Tensor:
    """The layer's output [n, ...] for the rows of one picture after those of another."""
    rows = x.reshape(-1, pictures, *x.shape[1:])  # negative rows come first
    return torch.stack([layer(rows[:, n]) for n in range(pictures)], 1).flatten(0, 1)


def _splits(x: Tensor, pictures: int) -> bool:
    """Do the rows of this input belong to `pictures`, on a device where their number tells?"""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and len(x) >= pictures
        and len(x) % pictures == 0
    )
