"""An adapter's LoRA on a denoiser: hooks on the linear maps of attention, live and removable.

No weight of the base changes and no layer is replaced, so LoRA that the user has loaded there stays
what it is, in whichever order the two came.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from imageprompt.carrier import Carrier
from imageprompt.weights import Lora


class LoraHooks:
    """Adds strength x LoRA(x) to the linear maps that are named, while `owner` is in use."""

    def __init__(
        self,
        carrier: Carrier,
        owner: object,
        loras: Mapping[str, Mapping[str, Lora]],
        linears: Mapping[str, Mapping[str, nn.Module]],
    ) -> None:
        """`loras` and `linears` by file id, then by kind: q, k, v, out."""
        self._carrier, self._owner = carrier, owner
        self._handles = [
            linears[i][kind].register_forward_hook(partial(self._add, lora))
            for i, layer in loras.items()
            for kind, lora in layer.items()
        ]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _add(self, lora: Lora, _: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor | None:
        strength = self._carrier.strength(self._owner)
        return None if strength is None else out + strength.to(out.dtype) * lora(args[0])
