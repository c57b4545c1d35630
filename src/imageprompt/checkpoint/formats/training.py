"""training: what the reference scripts save of unet, image_proj_model and adapter_modules.

The modules of `adapter_modules` are the processors of `unet`, so a tensor may appear under its file
id, under its layer's name, or under both. Wrappers (DDP, torch.compile, FSDP) leave segments in the
names, which are removed here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from imageprompt.checkpoint.formats.contract import ParsedNames, Parts, T

PROJECTOR = "image_proj_model"
MODULES = "adapter_modules"
DENOISER = "unet"
PROCESSOR = ".processor."
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


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
        parts: dict[str, dict[str, T]] = {PROJECTOR: {}, MODULES: {}, DENOISER: {}}
        named: dict[str, T] = {}
        unplaced, ignored = [], {}
        for name, tensor in tensors.items():
            plain = _plain(name)
            part, _, rest = plain.removeprefix(root).partition(".")
            if not plain.startswith(root) or part not in parts:
                ignored[name] = tensor  # optimiser state, frozen encoders
            elif rest in parts[part]:
                unplaced.append(name)  # the same name with and without a wrapper's segment
            else:
                parts[part][rest] = tensor
        for name, tensor in parts[DENOISER].items():
            layer, processor, rest = name.partition(PROCESSOR)
            if processor:
                named[f"{layer}.{rest}"] = tensor
            else:
                ignored[name] = tensor
        return ParsedNames(
            Parts(parts[PROJECTOR], parts[MODULES], named=named), tuple(unplaced), ignored
        )

    def write(self, parts: Parts[T]) -> dict[str, T]:
        flat = {f"{PROJECTOR}.{name}": tensor for name, tensor in parts.projector.items()}
        return flat | {f"{MODULES}.{name}": tensor for name, tensor in parts.sites.items()}


def _plain(name: str) -> str:
    """The name without the segments of wrappers."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _is_ours(name: str) -> bool:
    parts = name.split(".")
    if PROJECTOR in parts or MODULES in parts:
        return True
    return DENOISER in parts and PROCESSOR in name and ("_ip." in name)


def _root(names: Iterable[str]) -> str:
    """The prefix of the training module's own names: the shortest, as optimiser state is deeper."""
    roots = []
    for name in names:
        if _is_ours(name):
            parts = _plain(name).split(".")
            start = min(parts.index(p) for p in (PROJECTOR, MODULES, DENOISER) if p in parts)
            roots.append("".join(f"{part}." for part in parts[:start]))
    return min(roots, key=lambda root: root.count("."))


FORMAT = TrainingFormat()
