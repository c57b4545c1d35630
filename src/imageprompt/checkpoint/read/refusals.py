"""What a file is when it is not an adapter: told by first bytes, zip records or tensor names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from imageprompt.checkpoint.read.raw import DOWNLOAD_AGAIN, GIVE_AN_ADAPTER, refuse

_PAGE = "Download the file itself, not its web page."
_PICTURE = "Use it as the reference instead."
_UNPACK = "Unpack it and give the file inside."
_STATE_DICT = "Save its state_dict() instead."
_STARTS = (
    (b"version https://git-lfs", "a git-LFS pointer", "Fetch the file: git lfs pull."),
    (b"<!doctype html", "a web page", _PAGE),
    (b"<html", "a web page", _PAGE),
    (b"<svg", "an SVG drawing", "Use a PNG, JPEG or WEBP picture as the reference."),
    (b"<?xml", "an XML document", _PAGE),
    (b"\x89png", "a picture", _PICTURE),
    (b"\xff\xd8\xff", "a picture", _PICTURE),
    (b"gif8", "a picture", _PICTURE),
    (b"riff", "a picture or a sound", _PICTURE),
    (b"gguf", "a GGUF model", "Give an adapter in .safetensors or .bin."),
    (b"ggml", "a GGML model", "Give an adapter in .safetensors or .bin."),
    (b"\x89hdf", "an HDF5 file, as Keras writes them", GIVE_AN_ADAPTER),
    (b"\x93numpy", "a single numpy array", GIVE_AN_ADAPTER),
    (b"%pdf", "a PDF document", GIVE_AN_ADAPTER),
    (b"\x7felf", "a program", GIVE_AN_ADAPTER),
    (b"\x1f\x8b", "a gzip archive", _UNPACK),
    (b"bzh", "a bzip2 archive", _UNPACK),
    (b"\xfd7zxz", "an xz archive", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", _UNPACK),
    (b"7z\xbc\xaf", "a 7-zip archive", _UNPACK),
    (b"rar!", "a RAR archive", _UNPACK),
)
_ZIPS = (
    (r"(^|/)constants\.pkl$", "a TorchScript program", _STATE_DICT),
    (r"(^|/)archive_format$", "an exported torch program", _STATE_DICT),
    (r"\.npy$", "a numpy .npz archive", GIVE_AN_ADAPTER),
    (r"\.(safetensors|bin|pt|pth|ckpt)$", "a zip archive with weights inside", _UNPACK),
    (r"^\[Content_Types\]\.xml$", "an office document", GIVE_AN_ADAPTER),
    (r"^META-INF/", "a Java archive", GIVE_AN_ADAPTER),
)
_MAX_TOLD = 5000  # names that are looked at
ZERO_3 = "DeepSpeed's ZeRO-3 splits the weights into one partition per process"
_MERGE = (
    "Run `python zero_to_fp32.py . merged` in the checkpoint folder (DeepSpeed puts the script "
    "there) and give what it writes."
)
_LORA = "Load it with pipe.load_lora_weights()."
_BASE = "Use it as part of the base."
_CONTROL = "Load it with diffusers' ControlNetModel (InstantID's IdentityNet, too)."
_LOADED = "a denoiser with an adapter loaded into it"
_INSIDE = "Give the adapter file that was loaded; diffusers cannot extract it again."
_MODELS = (
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
    (r"^model\.diffusion_model\.", "a full checkpoint",
     "Use it as the base, in diffusers layout."),
    (r"motion_modules\.", "a motion module", "Load it with diffusers' MotionAdapter."),
    (r"^(unet\.)?(down_blocks|up_blocks|mid_block)\.", "a denoiser", _BASE),
    (r"^(double_blocks|single_blocks|joint_blocks|(single_)?transformer_blocks)\.", "a denoiser",
     _BASE),
    (r"^(vision_model|visual)\.", "an image encoder", "Use it as the encoder."),
    (r"^text_model\.|^transformer\.resblocks\.|^encoder\.block\.", "a text encoder", _BASE),
    (r"^(first_stage_model|(en|de)coder\.(conv_in|down_blocks|up|mid_block))\b", "a VAE", _BASE),
    (r"^(emb_params|string_to_param|clip_[lg]$|<)", "a textual inversion",
     "Load it with pipe.load_textual_inversion()."),
    (r"^(tokens|null_tokens)$", "an image prompt", "Load it with ImagePrompt.load()."),
    (r"(^|\.)exp_avg(_sq)?$", "the state of an optimiser", "Give the weights saved with it."),
    (r"^unet\.", "a part of a pipeline", "Load it with diffusers."),
)  # fmt: skip


def explain_bytes(path: Path, start: bytes, size: int) -> NoReturn:
    """Refuse a file by its first bytes (at least 512 of them, or all)."""
    lowered = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for magic, what, hint in _STARTS:
        if lowered.startswith(magic):
            refuse(path, f"this is {what}", hint)
    if start[257:262] == b"ustar":
        refuse(path, "this is a tar archive", _UNPACK)
    if not start.strip(b"\0"):
        refuse(path, "the file starts with zeros only: a broken download", DOWNLOAD_AGAIN)
    if lowered.startswith(b"{"):
        refuse(path, "this is JSON text, not weights", "Give the weights that it describes.")
    if _is_text(start):
        line = " ".join(start.decode(errors="replace").split())[:60]
        refuse(path, f"this is text ({line!r})", GIVE_AN_ADAPTER)
    refuse(path, f"its {size} bytes are neither a safetensors nor a torch file")


def explain_zip(path: Path, names: Iterable[str]) -> NoReturn:
    """Refuse a zip archive without a torch pickle, by its records."""
    names = list(names)
    for pattern, what, hint in _ZIPS:
        if any(re.search(pattern, name) for name in names[:_MAX_TOLD]):
            refuse(path, f"this is {what}", hint)
    first = ", ".join(repr(name[:60]) for name in names[:3])
    refuse(path, f"this is a zip archive that torch did not write ({first or 'empty'})")


def explain_names(path: Path, names: Iterable[str]) -> NoReturn:
    """Refuse a file of other tensors: say what they belong to, as far as their names tell."""
    names = list(names)
    for pattern, what, hint in _MODELS:
        if any(re.search(pattern, name) for name in names[:_MAX_TOLD]):
            refuse(path, f"this is {what}, not an adapter", hint)
    first = ", ".join(name[:80] for name in names[:5]) + (", ..." if len(names) > 5 else "")
    if not names:
        refuse(path, "the file contains no tensors")
    refuse(path, f"none of its {len(names)} tensors belongs to an adapter ({first})")


def explain_partitions(path: Path, reason: str = ZERO_3) -> NoReturn:
    """Refuse a part of DeepSpeed's partitioned weights, and say how to merge them."""
    refuse(path, reason, _MERGE)


def _is_text(start: bytes) -> bool:
    try:
        text = start.decode()
    except UnicodeDecodeError as error:
        if error.start < len(start) - 3:  # a character cut off at the end is still text
            return False
        text = start[: error.start].decode()
    return all(character.isprintable() or character.isspace() for character in text)
