"""training: what the reference scripts save of unet, image_proj_model and adapter_modules.

The modules of `adapter_modules` are the processors of `unet`, so a tensor may appear under its file
id, under its layer's name, or under both. Wrappers (DDP, torch.compile, FSDP) leave segments in the
names, which are removed here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from imageprompt.checkpoint.formats.contract import (
    DENOISER,
    PROCESSOR,
    ParsedNames,
    Parts,
    Placed,
    T,
    layer_name,
    of_a_site,
    plain_name,
    split_parts,
)

PROJECTOR = "image_proj_model"
MODULES = "adapter_modules"
_LAYERS = (DENOISER, "down_blocks", "up_blocks", "mid_block")  # with or without its name


class TrainingFormat:
    name = "training"
    summary = "training checkpoint: image_proj_model + adapter_modules or unet processors"
    suffixes = (".safetensors", ".bin")
    writable = True
    nested = False

    def claims(self, names: Iterable[str]) -> bool:
        return any(_is_ours(name) for name in names)

    def read(self, tensors: Mapping[str, T]) -> ParsedNames[T]:
        root = _root(tensors)
        projector, sites, named = Placed[T](), Placed[T](), Placed[T]()
        ignored: dict[str, T] = {}
        for name, tensor in tensors.items():
            plain = plain_name(name)
            inside = plain.removeprefix(root)
            parts, rest = split_parts(inside, (PROJECTOR, MODULES))
            layer = layer_name(rest)
            first = rest.partition(".")[0]
            if not plain.startswith(root):
                ignored[name] = tensor  # optimiser state, frozen encoders
            elif parts and parts[-1] == PROJECTOR:
                projector.put(rest, tensor)
            elif parts and layer.partition(".")[0].isdecimal():
                sites.put(layer, tensor)
            elif parts or (first in _LAYERS and (of_a_site(rest) or _processors(rest))):
                named.put(layer, tensor)
            else:
                ignored[layer if first == DENOISER else name] = tensor
        return ParsedNames(
            Parts(projector.tensors, sites.tensors, named=named.tensors),
            ignored=ignored,
            copies=(*projector.copies, *sites.copies, *named.copies),
        )

    def write(self, parts: Parts[T]) -> dict[str, T]:
        flat = {f"{PROJECTOR}.{name}": tensor for name, tensor in parts.projector.items()}
        return flat | {f"{MODULES}.{name}": tensor for name, tensor in parts.sites.items()}


def _is_ours(name: str) -> bool:
    parts = name.split(".")
    if PROJECTOR in parts or MODULES in parts:
        return True
    return DENOISER in parts and "_ip." in name and (of_a_site(name) or _processors(name))


def _processors(name: str) -> bool:
    return f".{PROCESSOR}." in name


def _root(names: Iterable[str]) -> str:
    """The prefix of the training module's own names: the shortest, as optimiser state is deeper."""
    roots = []
    for name in names:
        if _is_ours(name):
            parts = plain_name(name).split(".")
            start = min(parts.index(p) for p in (PROJECTOR, MODULES, DENOISER) if p in parts)
            roots.append("".join(f"{part}." for part in parts[:start]))
    return min(roots, key=lambda root: root.count("."))


FORMAT = TrainingFormat()
