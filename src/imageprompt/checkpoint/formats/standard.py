"""standard: `image_proj.*` and `ip_adapter.{id}.*`, what every published UNet adapter uses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from imageprompt.checkpoint.formats.contract import Parts

if TYPE_CHECKING:
    from torch import Tensor

PROJECTOR = "image_proj."
SITES = "ip_adapter."
SITES_ALIAS = "adapter_modules."  # some published files keep the training script's name


class Standard:
    name = "standard"
    summary = "image_proj + ip_adapter, flat in .safetensors, nested in .bin"

    def claims(self, names: Iterable[str]) -> bool:
        names = list(names)
        return any(n.startswith(PROJECTOR) for n in names) and any(
            n.startswith((SITES, SITES_ALIAS)) for n in names
        )

    def read(self, tensors: Mapping[str, Tensor]) -> tuple[Parts, list[str]]:
        projector: dict[str, Tensor] = {}
        sites: dict[str, Tensor] = {}
        unplaced: list[str] = []
        for name, tensor in tensors.items():
            if name.startswith(PROJECTOR):
                projector[name.removeprefix(PROJECTOR)] = tensor
            elif name.startswith((SITES, SITES_ALIAS)):
                sites[name.split(".", 1)[1]] = tensor
            else:
                unplaced.append(name)
        return Parts(projector, sites), unplaced

    def write(self, parts: Parts) -> dict[str, Tensor]:
        flat = {f"{PROJECTOR}{name}": tensor for name, tensor in parts.projector.items()}
        return flat | {f"{SITES}{name}": tensor for name, tensor in parts.sites.items()}


FORMAT = Standard()
