"""A ControlNet: found first, loaded and held against the base when that is there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from imageprompt.core.errors import OptionError, WrongBaseError
from imageprompt.core.hub import locate_folder
from imageprompt.loading.pipeline import quiet_loading
from imageprompt.loading.recipe import Source

_SAME = ("cross_attention_dim", "block_out_channels", "down_block_types", "layers_per_block")
"""What the base's UNet and the ControlNet that adds to it have in common."""


def find_controlnet(controlnet: Any, *, cached_only: bool) -> Path | None:
    """The local folder of one given as path or Hub id; None for one that is loaded already.

    Raises NotFoundError.
    """
    if isinstance(controlnet, str | os.PathLike):
        return locate_folder(controlnet, cached_only=cached_only)
    return None


def load_controlnet(
    controlnet: Any, folder: Path | None, pipe: Any, *, bars: bool
) -> tuple[Any, Source]:
    """The model in the pipeline's precision, and how a recipe names it.

    Raises OptionError, WrongBaseError.
    """
    from imageprompt.core.fingerprint import fingerprint

    name = None if folder is None else os.fspath(controlnet)
    model = controlnet if folder is None else _load(folder, name, pipe, bars)
    kind = type(model).__name__
    if kind != "ControlNetModel":
        raise OptionError(
            f"a {kind} as ControlNet",
            reason="generate() knows ControlNetModel",
            hint="Build the pipeline yourself, and attach the adapter to it.",
        )
    _check(name, model, pipe)
    return model, Source(name=name, hash=fingerprint(model.state_dict()))


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
        raise WrongBaseError(
            f"ControlNet {name!r}", reason="this base has no UNet that it could add to"
        )
    for key in _SAME:
        ours, theirs = (_plain(one.config.get(key)) for one in (model, denoiser))
        if ours != theirs:
            raise WrongBaseError(
                f"ControlNet {name!r}",
                reason=f"it was made for another base ({key} {ours}, the base has {theirs})",
                hint="Use a ControlNet of this base's family.",
            )
    shrinks = 2 ** (len(model.config.conditioning_embedding_out_channels) - 1)
    factor = getattr(pipe, "vae_scale_factor", 8)
    if shrinks != factor:
        raise WrongBaseError(
            f"ControlNet {name!r}",
            reason=f"it shrinks pictures by {shrinks}, this base's VAE by {factor}",
            hint="Use a ControlNet of this base's family.",
        )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value
