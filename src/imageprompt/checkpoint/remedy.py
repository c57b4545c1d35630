"""What to do with an adapter: which base and encoder, and the one line that loads it, and where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from imageprompt.checkpoint.detect import Identified, Problem
from imageprompt.checkpoint.published import encoder_name
from imageprompt.checkpoint.stored import Source
from imageprompt.variants import VARIANTS, pending

_BASES = {
    "sd15": "any Stable Diffusion 1.5, e.g. stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd2": "any Stable Diffusion 2.x, e.g. stabilityai/stable-diffusion-2-1",
    "sdxl": "any SDXL, e.g. stabilityai/stable-diffusion-xl-base-1.0",
    "kolors": "Kolors, e.g. Kwai-Kolors/Kolors-diffusers",
    "flux": "FLUX.1, e.g. black-forest-labs/FLUX.1-dev",
    "sd3": "Stable Diffusion 3.5 Large, e.g. stabilityai/stable-diffusion-3.5-large",
}
_LOADABLE = ("standard", "xlabs")  # layouts that programs load; others are converted first
_CONVERTED = Path("adapter.safetensors")
_IPADAPTER_PLUS = 'copy it to ComfyUI/models/ipadapter; node "IPAdapter Model Loader"'
_COMFYUI = {
    "xlabs": 'as --to xlabs in ComfyUI/models/xlabs/ipadapters; node "Flux Load IPAdapter"',
    "instantx": "copy it to ComfyUI/models/ipadapter-flux; nodes of ComfyUI-IPAdapter-Flux",
    "instantx-sd3": "nodes of ComfyUI-InstantX-IPAdapter-SD3",
    "faceid": f"{_IPADAPTER_PLUS}, and its LoRA with a LoRA loader",
    "faceid-plus": f"{_IPADAPTER_PLUS}, and its LoRA with a LoRA loader; that node tells v2 by "
    '"plusv2" in the file\'s name',
    "portrait-unnorm": f'{_IPADAPTER_PLUS}; it goes by "unnorm" in the file\'s name',
}
_COMFYUI["faceid-plus-v2"] = _COMFYUI["faceid-plus"]


@dataclass(frozen=True)
class Remedy:
    """One line of advice: `where` it is good for, and the line itself."""

    where: str
    line: str


def remedies(found: Identified, source: Source, problems: Sequence[Problem]) -> list[Remedy]:
    """Base and encoder, then the lines for this program, diffusers and ComfyUI.

    A layout that those do not read is converted first; the lines then name the new file.
    """
    advice = [Remedy("base", _BASES.get(found.host, "the base that it was trained on"))]
    advice.append(Remedy("encoder", _encoder(found)))
    if problems:
        line = "do not use this file: download it again, or take another checkpoint"
        return [*advice, Remedy("first", line)]
    path = source.path
    if found.format not in _LOADABLE or not path.is_file():
        advice.append(Remedy("first", f"imageprompt convert {path} {_CONVERTED}"))
        path = _CONVERTED
    return [
        *advice,
        Remedy("here", _here(found, path)),
        Remedy("diffusers", _diffusers(found, path)),
        Remedy("ComfyUI", next((_COMFYUI[v] for v in found.variants if v in _COMFYUI), "")
               or _IPADAPTER_PLUS),
    ]  # fmt: skip


def _encoder(found: Identified) -> str:
    if found.spec is None:
        return "the one that it was trained with"
    feature, width = found.spec.feature, found.spec.feature_width
    name = encoder_name(feature, width)
    return f"{name}: its {feature}" if name else f"one whose {feature} is {width} wide"


def _here(found: Identified, path: Path) -> str:
    why = next((pending(variant) for variant in VARIANTS if variant.name in found.variants), "")
    if why:
        return f"read, checked and converted here; not run yet ({why})"
    return f'imageprompt.Adapter.load("{path}")  # or: imageprompt generate --adapter {path} ...'


def _diffusers(found: Identified, path: Path) -> str:
    """Its loader goes by the projector's names, and takes some numbers for granted."""
    spec, names = found.spec, found.parts.projector
    pooled = "proj.weight" in names
    refused = ""
    if found.host == "flux" and not pooled:
        refused = "of FLUX adapters it knows those of XLabs"
    elif spec is not None and pooled and spec.tokens not in _tokens(found.host):
        refused = f"it takes {' or '.join(map(str, _tokens(found.host)))} tokens for granted"
    elif spec is not None and "latents" in names and found.host != "sd3" and spec.depth != 4:
        refused = "it takes a depth of 4 for granted"
    if refused:
        return f"cannot load it: {refused}"
    arguments = f'"{path.parent}", weight_name="{path.name}"'
    if found.host == "flux":
        encoder = "image_encoder_pretrained_model_name_or_path"
        return f'pipe.load_ip_adapter({arguments}, {encoder}="openai/clip-vit-large-patch14")'
    return f'pipe.load_ip_adapter({arguments}, subfolder="", image_encoder_folder=None)'


def _tokens(host: str) -> tuple[int, ...]:
    return (4, 16) if host == "flux" else (4,)
