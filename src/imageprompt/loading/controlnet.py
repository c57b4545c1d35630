"""A ControlNet: located first, loaded and compared with the base once that is loaded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from imageprompt.core.errors import OptionError, WrongBaseError
from imageprompt.core.hub import locate_folder
from imageprompt.loading.pipeline import quiet_loading, vae_scale_factor
from imageprompt.loading.recipe import AssetRecord

_SHARED_CONFIG = (
    "cross_attention_dim",
    "block_out_channels",
    "down_block_types",
    "layers_per_block",
)
"""What a ControlNet and the UNet of its base must agree in."""


def find_controlnet(controlnet: Any, *, cached_only: bool) -> Path | None:
    """The local folder of a path or Hub id; None for a loaded model. Raises NotFoundError."""
    if isinstance(controlnet, str | os.PathLike):
        return locate_folder(controlnet, cached_only=cached_only)
    return None


def load_controlnet(
    controlnet: Any, folder: Path | None, pipe: Any, *, bars: bool
) -> tuple[Any, AssetRecord]:
    """The model in the pipeline's dtype, and its record.

    Raises OptionError, WrongBaseError.
    """
    from imageprompt.core.fingerprint import fingerprint

    name = None if folder is None else os.fspath(controlnet)
    model = controlnet if folder is None else _load(folder, name, pipe, bars)
    kind = type(model).__name__
    if kind != "ControlNetModel":
        raise OptionError(
            f"a {kind} as ControlNet",
            reason="generate() supports ControlNetModel only",
            hint="Build the pipeline yourself, and attach the adapter to it.",
        )
    _check(name, model, pipe)
    return model, AssetRecord(name=name, hash=fingerprint(model.state_dict()))


def _load(folder: Path, name: str | None, pipe: Any, bars: bool) -> Any:
    from diffusers import ControlNetModel

    try:
        with quiet_loading(not bars):
            model = ControlNetModel.from_pretrained(folder, dtype=pipe.dtype, local_files_only=True)
        return model.to(pipe.device)
    except Exception as error:  # a damaged folder raises nearly anything
        lines = str(error).splitlines() or [type(error).__name__]
        raise OptionError(
            f"ControlNet {name!r}",
            reason=f"diffusers cannot load it ({lines[0]})",
            hint="Give the folder of a diffusers ControlNetModel.",
        ) from error


def _check(name: str | None, model: Any, pipe: Any) -> None:
    denoiser = getattr(pipe, "unet", None)
    if denoiser is None:
        raise WrongBaseError(f"ControlNet {name!r}", reason="this base has no UNet to add to")
    for key in _SHARED_CONFIG:
        ours, theirs = (_plain(one.config.get(key)) for one in (model, denoiser))
        if ours != theirs:
            raise WrongBaseError(
                f"ControlNet {name!r}",
                reason=f"made for another base ({key} {ours}; the base has {theirs})",
                hint="Use a ControlNet of this base's family.",
            )
    downscaling = 2 ** (len(model.config.conditioning_embedding_out_channels) - 1)
    factor = vae_scale_factor(pipe)
    if downscaling != factor:
        raise WrongBaseError(
            f"ControlNet {name!r}",
            reason=f"downscales pictures by {downscaling}; this base's VAE by {factor}",
            hint="Use a ControlNet of this base's family.",
        )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value
