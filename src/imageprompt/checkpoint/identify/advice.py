"""What to do with an adapter: which base and encoder it needs, and the line that loads it."""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import get_args

from imageprompt.checkpoint.identify.identify import Identification, architectures, needs_of
from imageprompt.checkpoint.identify.published import (
    SIGLIP,
    VIT_G,
    VIT_H,
    VIT_L,
    VIT_L_336,
    likely_encoder,
)
from imageprompt.checkpoint.read.int8 import AS_INT8
from imageprompt.checkpoint.read.stored_tensor import TensorSource
from imageprompt.checkpoint.report import Problem
from imageprompt.core.spec import AdapterSpec, ImageFeature
from imageprompt.hosts import HOSTS
from imageprompt.variants import VARIANTS, site_kinds

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
_ENCODED = get_args(ImageFeature)  # what this package's image encoders compute
_LOADABLE = (
    "standard",
    "xlabs",
    "style-model",
)  # layouts that other programs load; the rest is converted first
_CONVERTED = Path("adapter.safetensors")
_IPADAPTER_PLUS = 'copy it to ComfyUI/models/ipadapter, load it with "IPAdapter Model Loader"'
_COMFYUI = {
    "xlabs": "copy its xlabs layout (convert --to xlabs) to ComfyUI/models/xlabs/ipadapters, load "
    'it with "Flux Load IPAdapter"',
    "instantx": "copy its pickle (convert --to bin) to ComfyUI/models/ipadapter-flux, use the "
    "nodes of ComfyUI-IPAdapter-Flux",
    "redux": "copy its style-model layout (convert --to style-model) to "
    'ComfyUI/models/style_models, load it with "Load Style Model"',
    "instantx-sd3": "use the nodes of ComfyUI-InstantX-IPAdapter-SD3",
    "faceid": f"{_IPADAPTER_PLUS}, and its LoRA with a LoRA loader",
    "faceid-plus": f"{_IPADAPTER_PLUS}, and its LoRA with a LoRA loader; the node knows v2 by "
    '"plusv2" in the file name',
    "portrait-unnorm": f'{_IPADAPTER_PLUS}; the node needs "unnorm" in the file name',
}
_DOWNLOAD = "download it again, or convert its checkpoint again"
_REPAIRS = {
    "not-finite": "use an earlier checkpoint: this training had diverged",
    "constant": "use a later checkpoint: training starts from weights like these",
    "untrained": "use a later checkpoint: training starts from weights like these",
    "copies-differ": "save the checkpoint again: nothing shows which of the two copies is right",
    "unknown-layers": "name the base that it was trained on: --base DIR",
    "counted-ids": f"imageprompt convert --renumber FILE {_CONVERTED}",
    "whole-numbers": "use the file that it was quantised from",
    "mismatched": "take both halves from the same adapter",
    "wrong-base": "use it with the base that it was made for",
}
"""What to do about a problem, by its code."""
_COMFYUI["faceid-plus-v2"] = _COMFYUI["faceid-plus"]


@dataclass(frozen=True)
class Advice:
    """One line of advice: `where` it applies, and the line itself."""

    where: str
    line: str


def advice_on(
    found: Identification, source: TensorSource, problems: Sequence[Problem]
) -> list[Advice]:
    """Base and encoder, then the lines for this program, diffusers and ComfyUI.

    A layout that those do not read is converted first; the lines then use the converted file.
    """
    kind, example = _BASES.get(found.host, ("the base that it was trained on", ""))
    if found.spec is not None and _only_here(found.spec):
        kind, example = f"the {found.host} base that it was trained on", ""
    base = Advice("base", f"{kind}, such as {example}" if example else kind)
    if problems or found.spec is None:
        repairs = dict.fromkeys(_REPAIRS.get(problem.code, _DOWNLOAD) for problem in problems)
        return [base, *(Advice("first", repair) for repair in repairs)]
    spec = found.spec
    encoder = likely_encoder(spec.feature, spec.feature_dim, found.published)
    path, convert = source.path, []
    int8 = source.container.endswith(AS_INT8)
    light = source.light is not None
    if found.format not in _LOADABLE or int8 or light or not path.is_file():
        more = (" --base DIR" if light else "") + (" --dtype float16" if int8 or light else "")
        convert = [Advice("first", f"imageprompt convert {quote(str(path))} {_CONVERTED}{more}")]
        path = _CONVERTED
    lines = [
        base,
        Advice("encoder", _encoder(spec, encoder)),
        *convert,
        Advice("imageprompt", _imageprompt(spec, path, encoder, found)),
    ]
    if _only_here(spec):
        unread = "cannot load it: only imageprompt runs such adapters on transformers"
        return [*lines, Advice("diffusers", unread), Advice("ComfyUI", unread)]
    return [
        *lines,
        Advice("diffusers", _diffusers(spec, path, found.parts.projector)),
        Advice("ComfyUI", _comfyui(found.variants)),
    ]


def _only_here(spec: AdapterSpec) -> bool:
    """Is it a UNet's architecture on a transformer, as nobody else has it?"""
    transformers = [name for name in HOSTS.names() if name != "unet"]
    return spec.host in transformers and "cross" in site_kinds(VARIANTS[spec.variant])


def _encoder(spec: AdapterSpec, name: str | None) -> str:
    if name is None:
        return f"one whose {spec.feature} is {spec.feature_dim} wide"
    folder = f" ({_FOLDERS[name]})" if name in _FOLDERS else ""
    return f"{name}: its {spec.feature}{folder}"


def _imageprompt(spec: AdapterSpec, path: Path, encoder: str | None, found: Identification) -> str:
    if str(spec.feature) not in _ENCODED:
        variants = found.variants
        open_choice = len(architectures(variants)) > 1 or needs_of(found)
        choice = f', variant="{spec.variant}"' if open_choice else ""
        others = "".join(f', or variant="{name}"' for name in variants[1:] if choice)
        faces = "[face], embeddings=..." if spec.projector.face_dim else "embeddings=..."
        line = (
            f"adapter = imageprompt.Adapter.load({_python(path)}{choice}); adapter.encode({faces})"
        )
        return f"{line}  # {others[2:]}" if others else line
    _, base = ("", "BASE") if _only_here(spec) else _BASES.get(spec.host, ("", "BASE"))
    command = f"imageprompt generate --reference picture.png --adapter {quote(str(path))}"
    return f"{command} --base {base} --encoder {_FOLDERS.get(encoder or '', 'ENCODER')}"


def _diffusers(spec: AdapterSpec, path: Path, projector: Container[str]) -> str:
    """diffusers' loader recognises projectors by tensor names, and assumes some numbers."""
    if site_kinds(VARIANTS[spec.variant]) == ("text",):
        return (
            "FluxPriorReduxPipeline, whose image_embedder has these tensors (convert --to "
            "style-model)"
        )
    pooled, flux = "proj.weight" in projector, spec.host == "flux"
    tokens = (4, 16) if flux else (4,)
    if spec.feature != VARIANTS[spec.variant].feature:
        return f"cannot load it: it reads {spec.feature} of another encoder than CLIP"
    if flux and not pooled:
        return "cannot load it: it supports only the FLUX adapters of XLabs"
    if pooled and spec.tokens not in tokens:
        return f"cannot load it: it assumes {' or '.join(map(str, tokens))} tokens"
    if "latents" in projector and spec.host != "sd3" and spec.depth != 4:
        return "cannot load it: it assumes a depth of 4"
    arguments = f"{_python(path.parent)}, weight_name={_python(path.name)}"
    if flux:
        encoder = "image_encoder_pretrained_model_name_or_path"
        return f'pipe.load_ip_adapter({arguments}, {encoder}="{_FOLDERS[VIT_L]}")'
    line = f'pipe.load_ip_adapter({arguments}, subfolder="", image_encoder_folder=None)'
    return line if spec.feature.reads_faces else f"{line}  # create pipe with image_encoder=..."


def _python(path: Path | str) -> str:
    """A path as text in a line of Python."""
    return json.dumps(str(path), ensure_ascii=False)


def _comfyui(variants: Iterable[str]) -> str:
    return next((_COMFYUI[name] for name in variants if name in _COMFYUI), _IPADAPTER_PLUS)
