"""What to do with an adapter: which base and encoder, and the one line that loads it, and where."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from imageprompt.checkpoint.identify.identify import Identified, kinds_of
from imageprompt.checkpoint.identify.problems import Problem
from imageprompt.checkpoint.identify.published import (
    SIGLIP,
    VIT_G,
    VIT_H,
    VIT_L,
    VIT_L_336,
    likely_encoder,
)
from imageprompt.checkpoint.read.stored_tensor import Source
from imageprompt.core.spec import AdapterSpec
from imageprompt.variants import VARIANTS, pending

_BASES = {
    "sd15": ("any Stable Diffusion 1.5", "stable-diffusion-v1-5/stable-diffusion-v1-5"),
    "sd2": ("any Stable Diffusion 2.x", "stabilityai/stable-diffusion-2-1"),
    "sdxl": ("any SDXL", "stabilityai/stable-diffusion-xl-base-1.0"),
    "kolors": ("Kolors", "Kwai-Kolors/Kolors-diffusers"),
    "flux": ("FLUX.1", "black-forest-labs/FLUX.1-dev"),
    "sd3": ("Stable Diffusion 3.5 Large", "stabilityai/stable-diffusion-3.5-large"),
}
_FOLDERS = {
    VIT_H: "h94/IP-Adapter/models/image_encoder",
    VIT_G: "h94/IP-Adapter/sdxl_models/image_encoder",
    VIT_L: "openai/clip-vit-large-patch14",
    VIT_L_336: "openai/clip-vit-large-patch14-336",
    SIGLIP: "google/siglip-so400m-patch14-384",
}
_ENCODED = ("image_embeds", "hidden_states[-2]")  # what our own encoders make of a picture
_LOADABLE = ("standard", "xlabs")  # layouts that programs load; others are converted first
_CONVERTED = Path("adapter.safetensors")
_IPADAPTER_PLUS = 'copy it to ComfyUI/models/ipadapter; node "IPAdapter Model Loader"'
_COMFYUI = {
    "xlabs": "its xlabs layout (convert --to xlabs) goes to ComfyUI/models/xlabs/ipadapters; node "
    '"Flux Load IPAdapter"',
    "instantx": "its pickle (convert --to bin) goes to ComfyUI/models/ipadapter-flux; nodes of "
    "ComfyUI-IPAdapter-Flux",
    "instantx-sd3": "nodes of ComfyUI-InstantX-IPAdapter-SD3",
    "faceid": f"{_IPADAPTER_PLUS}, and its LoRA with a LoRA loader",
    "faceid-plus": f"{_IPADAPTER_PLUS}, and its LoRA with a LoRA loader; that node tells v2 by "
    '"plusv2" in the file\'s name',
    "portrait-unnorm": f'{_IPADAPTER_PLUS}; it goes by "unnorm" in the file\'s name',
}
_FETCH = "fetch it again, or convert the checkpoint that it came from again"
_CURES = {
    "not-finite": "take an earlier checkpoint: this training had diverged",
    "constant": "take a later checkpoint: these weights are where a training starts",
    "untrained": "take a later checkpoint: these weights are where a training starts",
    "copies-differ": "save the checkpoint again: which of the two copies is right, nobody can tell",
    "unknown-layers": "name the base that it was trained on: --base DIR",
    "mismatched": "take both halves from one adapter",
}
"""What to do about a problem, by its code."""
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
    words, example = _BASES.get(found.host, ("the base that it was trained on", ""))
    base = Remedy("base", f"{words}, such as {example}" if example else words)
    if problems or found.spec is None:
        cures = dict.fromkeys(_CURES.get(problem.code, _FETCH) for problem in problems)
        return [base, *(Remedy("first", cure) for cure in cures)]
    spec = found.spec
    encoder = likely_encoder(spec.feature, spec.feature_dim, found.published)
    path, convert = source.path, []
    if found.format not in _LOADABLE or not path.is_file():
        convert = [Remedy("first", f"imageprompt convert {path} {_CONVERTED}")]
        path = _CONVERTED
    return [
        base,
        Remedy("encoder", _encoder(spec, encoder)),
        *convert,
        Remedy("here", _here(spec, path, encoder, found.variants)),
        Remedy("diffusers", _diffusers(spec, path, found.parts.projector)),
        Remedy("ComfyUI", _comfyui(found.variants)),
    ]


def _encoder(spec: AdapterSpec, name: str | None) -> str:
    if name is None:
        return f"one whose {spec.feature} is {spec.feature_dim} wide"
    folder = f" ({_FOLDERS[name]})" if name in _FOLDERS else ""
    return f"{name}: its {spec.feature}{folder}"


def _here(spec: AdapterSpec, path: Path, encoder: str | None, variants: Sequence[str]) -> str:
    why = pending(VARIANTS[spec.variant])
    if why:
        return f"it is read, checked and converted, but {why}"
    if str(spec.feature) not in _ENCODED:
        asked = f', variant="{spec.variant}"' if len(kinds_of(variants)) > 1 else ""
        others = "".join(f', or variant="{name}"' for name in variants[1:] if asked)
        faces = "[face], embeddings=..." if spec.projector.face_dim else "embeddings=..."
        line = f'adapter = imageprompt.Adapter.load("{path}"{asked}); adapter.encode({faces})'
        return f"{line}  # {others[2:]}" if others else line
    _, base = _BASES.get(spec.host, ("", "BASE"))
    command = f"imageprompt generate --reference picture.png --adapter {path}"
    return f"{command} --base {base} --encoder {_FOLDERS.get(encoder or '', 'ENCODER')}"


def _diffusers(spec: AdapterSpec, path: Path, projector: Container[str]) -> str:
    """Its loader goes by the projector's names, and takes some numbers for granted."""
    pooled, flux = "proj.weight" in projector, spec.host == "flux"
    tokens = (4, 16) if flux else (4,)
    if flux and not pooled:
        return "cannot load it: of FLUX adapters it knows those of XLabs"
    if pooled and spec.tokens not in tokens:
        return f"cannot load it: it takes {' or '.join(map(str, tokens))} tokens for granted"
    if "latents" in projector and spec.host != "sd3" and spec.depth != 4:
        return "cannot load it: it takes a depth of 4 for granted"
    arguments = f'"{path.parent}", weight_name="{path.name}"'
    if flux:
        encoder = "image_encoder_pretrained_model_name_or_path"
        return f'pipe.load_ip_adapter({arguments}, {encoder}="{_FOLDERS[VIT_L]}")'
    line = f'pipe.load_ip_adapter({arguments}, subfolder="", image_encoder_folder=None)'
    return line if spec.feature.reads_faces else f"{line}  # pipe made with image_encoder=..."


def _comfyui(variants: Iterable[str]) -> str:
    return next((_COMFYUI[name] for name in variants if name in _COMFYUI), _IPADAPTER_PLUS)
