"""standard: `image_proj.*` and `ip_adapter.{id}.*`, as nearly every published adapter has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from imageprompt.checkpoint.formats.contract import (
    DENOISER,
    ParsedNames,
    Parts,
    Placed,
    T,
    layer_name,
    of_a_site,
    split_parts,
)

PROJECTOR = "image_proj."
SITES = "ip_adapter."
# the training script's names, in some published files
_PROJECTORS = ("image_proj", "image_proj_model")
_PARTS = ("ip_adapter", "adapter_modules", *_PROJECTORS)
_OWN = {"image_proj", "ip_adapter"}


class StandardFormat:
    name = "standard"
    summary = "image_proj + ip_adapter, flat in .safetensors, nested in .bin"
    suffixes = (".safetensors", ".bin")
    writable = True
    nested = True

    def claims(self, names: Iterable[str]) -> bool:
        found = (split_parts(name, _PARTS)[0] for name in names)
        return any(not _OWN.isdisjoint(parts) for parts in found)

    def read(self, tensors: Mapping[str, T]) -> ParsedNames[T]:
        """Sites by id, or by the path of their layer; a part may stand inside a part."""
        projector, sites, named = Placed[T](), Placed[T](), Placed[T]()
        unplaced: list[str] = []
        ignored: dict[str, T] = {}
        for name, tensor in tensors.items():
            parts, rest = split_parts(name, _PARTS)
            layer = layer_name(rest)
            if parts and parts[-1] in _PROJECTORS:
                projector.put(rest, tensor)
            elif rest.startswith(f"{DENOISER}.") and not of_a_site(rest):
                ignored[layer] = tensor  # the frozen base
            elif not parts and not of_a_site(rest):
                unplaced.append(name)
            elif layer.split(".", 1)[0].isdecimal():
                sites.put(layer, tensor)
            else:
                named.put(layer, tensor)
        return ParsedNames(
            Parts(projector.tensors, sites.tensors, named=named.tensors),
            tuple(unplaced),
            ignored,
            (*projector.copies, *sites.copies, *named.copies),
        )

    def write(self, parts: Parts[T]) -> dict[str, T]:
        flat = {f"{PROJECTOR}{name}": tensor for name, tensor in parts.projector.items()}
        return flat | {f"{SITES}{name}": tensor for name, tensor in parts.sites.items()}


FORMAT = StandardFormat()
