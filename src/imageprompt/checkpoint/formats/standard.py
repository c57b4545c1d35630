"""standard: `image_proj.*` and `ip_adapter.{id}.*`, as nearly every published adapter has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from imageprompt.checkpoint.formats.contract import ParsedNames, Parts, T

PROJECTOR = "image_proj."
SITES = "ip_adapter."
SITES_ALIAS = "adapter_modules."  # the training script's name, in some published files


class StandardFormat:
    name = "standard"
    summary = "image_proj + ip_adapter, flat in .safetensors, nested in .bin"
    suffixes = (".safetensors", ".bin")
    writable = True
    nested = True

    def claims(self, names: Iterable[str]) -> bool:
        return any(name.startswith((PROJECTOR, SITES)) for name in names)

    def read(self, tensors: Mapping[str, T]) -> ParsedNames[T]:
        projector: dict[str, T] = {}
        sites: dict[str, T] = {}
        unplaced: list[str] = []
        for name, tensor in tensors.items():
            if name.startswith(PROJECTOR):
                projector[name.removeprefix(PROJECTOR)] = tensor
            elif name.startswith((SITES, SITES_ALIAS)):
                sites[name.split(".", 1)[1]] = tensor
            else:
                unplaced.append(name)
        return ParsedNames(Parts(projector, sites), tuple(unplaced))

    def write(self, parts: Parts[T]) -> dict[str, T]:
        flat = {f"{PROJECTOR}{name}": tensor for name, tensor in parts.projector.items()}
        return flat | {f"{SITES}{name}": tensor for name, tensor in parts.sites.items()}


FORMAT = StandardFormat()
