"""Fast copies of a module: its structure is unpickled, its tensors are cloned.

Building a small UNet takes most of its time in constructors; `copy.deepcopy` is no faster.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

from torch import Tensor, nn


class Template:
    """A module to make equal, independent copies of."""

    def __init__(self, module: nn.Module) -> None:
        self._tensors: list[Tensor] = []
        stream = io.BytesIO()
        _Pickler(stream, self._tensors).dump(module)
        self._structure = stream.getvalue()

    def copy(self) -> Any:
        """A module with tensors of its own."""
        return _Unpickler(io.BytesIO(self._structure), self._tensors).load()


class _Pickler(pickle.Pickler):
    def __init__(self, stream: io.BytesIO, tensors: list[Tensor]) -> None:
        super().__init__(stream, protocol=pickle.HIGHEST_PROTOCOL)
        self._tensors, self._numbers = tensors, dict[int, int]()

    def persistent_id(self, obj: object) -> int | None:
        if not isinstance(obj, Tensor):
            return None
        if id(obj) not in self._numbers:  # a shared tensor stays shared
            self._numbers[id(obj)] = len(self._tensors)
            self._tensors.append(obj)
        return self._numbers[id(obj)]


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, tensors: list[Tensor]) -> None:
        super().__init__(stream)
        self._tensors, self._made = tensors, dict[int, Tensor]()

    def persistent_load(self, number: int) -> Tensor:
        if number not in self._made:
            tensor = self._tensors[number]
            made = tensor.detach().clone()
            if isinstance(tensor, nn.Parameter):
                made = nn.Parameter(made, requires_grad=tensor.requires_grad)
            self._made[number] = made
        return self._made[number]
