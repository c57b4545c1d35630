"""What a file of tensors is when it is no adapter: told by their names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from imageprompt.core.errors import AdapterFileError

_LORA = "Load it with pipe.load_lora_weights()."
_BASE = "Give it as a part of the base."
_CONTROL = "Load it with diffusers' ControlNetModel."
_INSIDE = "Give the adapter file that was loaded; diffusers cannot give it back."
_LOADED = "a denoiser with an adapter loaded into it"
_KNOWN = (
    (r"\.processor\.to_[kv]_ip\.\d+\.weight$", _LOADED, _INSIDE),
    (r"^encoder_hid_proj\.image_projection_layers\.", _LOADED, _INSIDE),
    (r"^lora_(unet|te|transformer)", "a LoRA", _LORA),
    (r"\.lora_(A|B|up|down|linear_layer)\.", "a LoRA", _LORA),
    (r"_lora\.(up|down)\.weight$", "a LoRA", _LORA),
    (r"\.(hada_w|lokr_w)\d", "a LyCORIS adapter", _LORA),
    (r"^(controlnet_cond_embedding|control_model|controlnet_(down|mid)?_?blocks?|input_hint_block)\.",
     "a ControlNet", _CONTROL),
    (r"^(adapter\.)?body\.\d+\.(resnets|in_conv|block1|0)\b", "a T2I-Adapter",
     "Load it with diffusers' T2IAdapter."),
    (r"^redux_(up|down)\.", "FLUX Redux: it adds its tokens to the text",
     "Load it with diffusers' FluxPriorReduxPipeline."),
    (r"^model\.diffusion_model\.", "a full checkpoint",
     "Give it as the base, in diffusers layout."),
    (r"motion_modules\.", "a motion module", "Load it with diffusers' MotionAdapter."),
    (r"^(unet\.)?(down_blocks|up_blocks|mid_block)\.", "a denoiser", _BASE),
    (r"^(double_blocks|single_blocks|joint_blocks|(single_)?transformer_blocks)\.", "a denoiser",
     _BASE),
    (r"^(vision_model|visual)\.", "an image encoder", "Give it as the encoder."),
    (r"^text_model\.|^transformer\.resblocks\.|^encoder\.block\.", "a text encoder", _BASE),
    (r"^(first_stage_model|(en|de)coder\.(conv_in|down_blocks|up|mid_block))\b", "a VAE", _BASE),
    (r"^(emb_params|string_to_param|clip_[lg]$|<)", "a textual inversion",
     "Load it with pipe.load_textual_inversion()."),
    (r"^(tokens|null_tokens)$", "an image prompt", "Load it with ImagePrompt.load()."),
    (r"(^|\.)exp_avg(_sq)?$", "the state of an optimiser", "Give the weights beside it."),
    (r"^unet\.", "a part of a pipeline", "Load it with diffusers."),
)  # fmt: skip


def explain_names(path: Path, names: Iterable[str]) -> NoReturn:
    """Raise AdapterFileError that says what these tensors belong to, as far as names tell."""
    names = list(names)
    for pattern, what, remedy in _KNOWN:
        if any(re.search(pattern, name) for name in names):
            raise AdapterFileError(str(path), reason=f"this is {what}, not an adapter", hint=remedy)
    first = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    rule = (
        f"none of its {len(names)} tensors belongs to an adapter ({first})"
        if names
        else ("there are no tensors in it")
    )
    raise AdapterFileError(str(path), reason=rule, hint="Give an image-prompt adapter file.")
