"""Fingerprints of weights, independent of their precision, and a cheap way to detect changes."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

SAMPLES = 1024  # per tensor; fine-tuning moves nearly every weight, so a sample is enough


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """16 hex digits over names, shapes and up to 1024 values of each tensor, rounded to half.

    Reads about 1 MB of a 2.5 GB encoder. Equal fingerprints are no proof against forgery.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        flat = tensor.reshape(-1)
        sample = flat[:: max(1, flat.numel() // SAMPLES)][:SAMPLES]
        digest.update(sample.half().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def versions(tensors: Iterable[Tensor]) -> tuple[tuple[int, int], ...]:
    """Changes whenever a tensor is written to, moved or replaced.

    Tensors made in inference mode do not count writes; only their address is compared.
    """
    return tuple((t.data_ptr(), -1 if t.is_inference() else t._version) for t in tensors)


def contents(tensors: Iterable[Tensor]) -> tuple[Any, ...]:
    """Like `versions`, and it changes with every bit of their content: for small tensors."""
    tensors = list(tensors)
    return versions(tensors), tuple(zlib.crc32(_bits(t).cpu().numpy().tobytes()) for t in tensors)


class ContentWatch:
    """Notices writes to large tensors, also those through `.data`, which no version counts.

    Of those it compares 256 numbers of each tensor, 16 in a row at 16 evenly spaced places (all of
    a smaller tensor): enough for an average of weights or a fine-tune, which move nearly every
    number, not for a few numbers that somebody changes in place. Takes well below a millisecond.
    """

    def __init__(self) -> None:
        self._versions: tuple[tuple[int, int], ...] = ()
        self._samples: list[list[Tensor]] = []
        self._seen: list[Tensor] = []
        self._changes = 0

    def state(self, tensors: Iterable[Tensor]) -> tuple[Any, ...]:
        """Changes whenever a write to the tensors, a move or a replacement is noticed."""
        tensors = list(tensors)
        now = versions(tensors)
        with torch.no_grad():
            if now != self._versions:
                self._versions, self._samples = now, _samples(tensors)
                self._seen = _read(self._samples)
            else:
                seen = _read(self._samples)
                if not all(map(torch.equal, seen, self._seen)):
                    self._seen, self._changes = seen, self._changes + 1
        return (self._changes, *now)


_PLACES = 16
_TOGETHER = 32  # tensors; more would wake the other threads of torch, which costs their time


def _samples(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Views into the tensors, those of equal shape, dtype and device together."""
    groups: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        if tensor.device.type == "meta":
            continue
        view = tensor.detach()
        if view.numel() > _PLACES**2 and view.is_contiguous():
            step = (view.numel() - _PLACES) // (_PLACES - 1)
            view = view.as_strided((_PLACES, _PLACES), (step, 1))
        groups.setdefault((view.shape, view.dtype, view.device), []).append(view)
    return [
        group[start : start + _TOGETHER]
        for group in groups.values()
        for start in range(0, len(group), _TOGETHER)
    ]


def _read(samples: list[list[Tensor]]) -> list[Tensor]:
    return [_bits(torch.stack(group)) for group in samples]


def _bits(tensor: Tensor) -> Tensor:
    """The bytes of a tensor, so that equal NaNs are equal."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
