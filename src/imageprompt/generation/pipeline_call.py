"""Which pipeline a request needs, made of the base's own parts, and the arguments of its call."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from imageprompt.core import bundled
from imageprompt.core.errors import OptionError
from imageprompt.generation.request import Request
from imageprompt.generation.start_images import Size, Start

_WORDS = {"prompt", "num_inference_steps", "generator", "num_images_per_prompt"}


def pipeline_for(pipe: Any, start: Start, controlnet: Any) -> Any:
    """`pipe`, or the pipeline of the same parts that takes these pictures. Raises OptionError."""
    import diffusers

    if controlnet is None and _takes(pipe, start):
        return pipe
    if start.mask is not None:
        kind, what = diffusers.AutoPipelineForInpainting, "inpainting"
    elif start.init is not None:
        kind, what = diffusers.AutoPipelineForImage2Image, "init image"
    else:
        kind, what = diffusers.AutoPipelineForText2Image, "text"
    added = {} if controlnet is None else {"controlnet": controlnet}
    try:
        return kind.from_pipe(pipe, **added)
    except ValueError as error:
        also = " with a ControlNet" if added else ""
        raise OptionError(
            f"base of type {type(pipe).__name__}",
            reason=f"diffusers has no pipeline for {what}{also} of its parts",
            hint="Use a base of the SD1.5, SD2, SDXL or Kolors family.",
        ) from error


def _takes(pipe: Any, start: Start) -> bool:
    """Does the pipeline, as it is, start from what there is?"""
    known = inspect.signature(type(pipe).__call__).parameters
    from_picture = "image" in known and bool({"strength", "image_guidance_scale"} & known.keys())
    holes = "mask_image" in known
    return from_picture == (start.init is not None) and holes == (start.mask is not None)


def options_of(request: Request, pipe: Any, start: Start, size: Size | None) -> dict[str, Any]:
    """The pipeline's arguments, its own defaults spelt out for the recipe. Raises OptionError."""
    known = inspect.signature(type(pipe).__call__).parameters
    if not known.keys() >= _WORDS:
        raise OptionError(
            f"base of type {type(pipe).__name__}",
            reason="it makes no pictures from words",
            hint="Use a text-to-image pipeline.",
        )
    options: dict[str, Any] = {"prompt": request.prompt}
    options["num_inference_steps"] = request.steps or known["num_inference_steps"].default
    wishes = {"guidance_scale": request.guidance_scale, "negative_prompt": request.negative_prompt}
    for name, value in wishes.items():
        if name in known:
            options[name] = known[name].default if value in (None, "") else value
        elif value not in (None, ""):
            raise OptionError(
                f"{name.replace('_', ' ')} {value!r}", reason="this base has no such option"
            )
    if size is not None and {"width", "height"} <= known.keys():
        options |= {"width": size[0], "height": size[1]}
    options |= _pictures(request, start, known, options["num_inference_steps"])
    if "image" in known and "image" not in options:
        raise OptionError(
            f"base of type {type(pipe).__name__}",
            reason="it starts from a picture that generate() has no name for",
            hint="Use adapter.use() and the pipeline itself.",
        )
    return options


def with_own_defaults(request: Request, name: str | None) -> dict[str, Any]:
    """What the bundled stack's pictures look best with, where nothing else was asked for."""
    if name != bundled.NAME:
        return {}
    wished = {"steps": bundled.STEPS, "guidance_scale": bundled.GUIDANCE}
    return {key: value for key, value in wished.items() if getattr(request, key) is None}


@contextmanager
def inpainting_latents(pipe: Any, start: Start) -> Iterator[None]:
    """Let diffusers' inpainting see a UNet of four channels where it has as many as the latents.

    It reads that number for one thing only: 9 is a UNet that is shown the hole, 4 one that is not,
    whose latents are put back around the hole after every step. Bases with latents of other widths
    (the bundled stack's have 16 channels) are of the second kind, but are refused, or with a
    ControlNet not inpainted at all. The config is as it was afterwards.
    """
    unet: Any = getattr(pipe, "unet", None)
    channels = None if unet is None else unet.config.in_channels
    if start.mask is None or channels in (None, 4) or channels != pipe.vae.config.latent_channels:
        yield
        return
    unet.register_to_config(in_channels=4)
    try:
        yield
    finally:
        unet.register_to_config(in_channels=channels)


def _pictures(
    request: Request, start: Start, known: Mapping[str, inspect.Parameter], steps: int
) -> dict[str, Any]:
    made: dict[str, Any] = {}
    if start.init is not None:
        made |= {"image": start.init, **_strength(request, known, steps)}
    if start.mask is not None:
        made["mask_image"] = start.mask
    if start.control is not None:
        made["control_image" if "control_image" in known else "image"] = start.control
        scale = request.control_scale
        made["controlnet_conditioning_scale"] = 1.0 if scale is None else scale
    return made


def _strength(
    request: Request, known: Mapping[str, inspect.Parameter], steps: int
) -> dict[str, float]:
    strength = request.strength
    if "strength" not in known:
        if strength is not None:
            raise OptionError(f"strength {strength}", reason="this base has no such option")
        return {}
    strength = known["strength"].default if strength is None else strength
    if int(steps * strength) < 1:
        raise OptionError(
            f"strength {strength} of {steps} steps",
            reason="less than one step is left to do",
            hint="Raise --strength or --steps.",
        )
    return {"strength": strength}
