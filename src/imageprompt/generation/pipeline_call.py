"""The pipeline that a request needs, built from the base's parts, and its arguments."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from imageprompt.core import bundled
from imageprompt.core.errors import OptionError
from imageprompt.generation.request import Request
from imageprompt.generation.step_noise import draws_by_eta
from imageprompt.loading import largest_side, stated_text_tokens, vae_scale_factor
from imageprompt.loading.models import Models

if TYPE_CHECKING:
    from PIL.Image import Image

Size = tuple[int, int]
"""Width and height in pixels."""

_TEXT_TO_IMAGE = {"prompt", "num_inference_steps", "generator", "num_images_per_prompt"}
_MAY_EDIT = ("FluxKontextPipeline", "Flux2Pipeline", "Flux2KleinPipeline", "Flux2KleinKVPipeline")
"""Pipelines that edit the init image if there is one, and do without."""


_NOT_IN_AUTO = {
    ("ChromaPipeline", "init image"): "ChromaImg2ImgPipeline",
    ("Flux2KleinPipeline", "inpainting"): "Flux2KleinInpaintPipeline",
}
"""Pipelines of diffusers that its AutoPipeline classes do not know."""


@dataclass(frozen=True)
class StartImages:
    """What a picture starts from besides noise, and the records by the names of the request."""

    init: Image | None = None
    mask: Image | None = None
    control: Image | None = None
    records: Mapping[str, Any] = field(default_factory=dict)


def pipeline_for(pipe: Any, start: StartImages, controlnet: Any, models: Models) -> Any:
    """`pipe`, or another pipeline of the same parts that takes these images. Raises OptionError."""
    import diffusers

    if controlnet is None:
        _check_control(pipe, start)
        if _takes(pipe, start):
            return pipe
    if start.mask is not None:
        kind, what = diffusers.AutoPipelineForInpainting, "inpainting"
    elif start.init is not None:
        kind, what = diffusers.AutoPipelineForImage2Image, "init image"
    else:
        kind, what = diffusers.AutoPipelineForText2Image, "text"
    added = {} if controlnet is None else {"controlnet": controlnet}
    if not added and (own := _NOT_IN_AUTO.get((type(pipe).__name__, what))) is not None:
        kind = getattr(diffusers, own)
    try:
        return models.variant(pipe, what, controlnet, lambda: kind.from_pipe(pipe, **added))
    except ValueError as error:
        net = " with a ControlNet" if added else ""
        fills = "mask_image" in inspect.signature(type(pipe).__call__).parameters
        raise OptionError(
            f"base of type {type(pipe).__name__}",
            reason=f"diffusers has no pipeline for {what}{net} for it",
            hint="Give --init-image and --inpaint-mask: it fills what a mask marks."
            if fills
            else "Use a base of the SD1.5, SDXL, SD3, FLUX or Qwen-Image family.",
        ) from error


def _check_control(pipe: Any, start: StartImages) -> None:
    """Some bases read a control image themselves (FLUX Control); without one, or others with it,
    nothing can be made. Raises OptionError."""
    known = inspect.signature(type(pipe).__call__).parameters
    reads = "control_image" in known and "controlnet" not in pipe.components
    if start.control is not None and not reads:
        raise OptionError(
            "--control-image without --controlnet",
            reason="has no effect",
            hint="Give --controlnet too, or leave it out.",
        )
    if start.control is None and reads:
        raise OptionError(
            f"base of type {type(pipe).__name__}",
            reason="it reads a control image",
            hint="Give one: --control-image FILE.",
        )


def _takes(pipe: Any, start: StartImages) -> bool:
    """Does this pipeline start from these images already?"""
    known = inspect.signature(type(pipe).__call__).parameters
    if _edits(known) and start.mask is None:
        return True
    from_image = "image" in known and bool({"strength", "image_guidance_scale"} & known.keys())
    inpaints = "mask_image" in known
    return from_image == (start.init is not None) and inpaints == (start.mask is not None)


def _edits(known: Mapping[str, Any]) -> bool:
    """Is the image of a pipeline's call, by its parameters, one to edit? It comes first, then."""
    names = [name for name in known if name in ("image", "prompt")]
    return names == ["image", "prompt"] and "strength" not in known


def check_text_to_image(pipe: Any) -> None:
    """Raises OptionError for a pipeline that makes no pictures from text."""
    if not inspect.signature(type(pipe).__call__).parameters.keys() >= _TEXT_TO_IMAGE:
        raise OptionError(
            f"base of type {type(pipe).__name__}",
            reason="not a text-to-image pipeline",
            hint="Use a text-to-image pipeline, or call it yourself, inside adapter.use().",
        )


def guided_by(pipe: Any) -> str:
    """The argument of a pipeline that is the scale of its classifier-free guidance by default."""
    own = inspect.signature(type(pipe).__call__).parameters.get("true_cfg_scale")
    return "guidance_scale" if own is None or own.default <= 1 else own.name


def _check_read(request: Request, pipe: Any, known: Mapping[str, inspect.Parameter]) -> None:
    """Warns about a guidance scale that is for distilled bases only, and this is none."""
    config = getattr(getattr(pipe, "transformer", None), "config", None) or {}
    distilled_only = "true_cfg_scale" in known and config.get("guidance_embeds") is False
    if distilled_only and request.guidance_scale not in (None, known["guidance_scale"].default):
        warnings.warn(
            f"no effect on this base: --guidance-scale {request.guidance_scale:g} "
            "(its guidance is --true-cfg-scale)",
            stacklevel=4,
        )


def options_of(
    request: Request, pipe: Any, start: StartImages, size: Size | None
) -> dict[str, Any]:
    """The pipeline's arguments, with its defaults filled in. Raises OptionError."""
    check_text_to_image(pipe)
    known = inspect.signature(type(pipe).__call__).parameters
    _check_read(request, pipe, known)
    options: dict[str, Any] = {"prompt": request.prompt}
    options["num_inference_steps"] = request.steps or known["num_inference_steps"].default
    optional = {
        "guidance_scale": request.guidance_scale,
        "true_cfg_scale": _true_cfg_scale(request),
        "negative_prompt": request.negative_prompt,
    }
    off = ("true_cfg_scale", 1.0)  # as it is on every base that does not have it
    for name, value in optional.items():
        if name in known:
            options[name] = known[name].default if value in (None, "") else value
        elif value not in (None, "") and (name, value) != off:
            raise OptionError(
                f"{name.replace('_', ' ')} {value!r}", reason="this base has no such option"
            )
    if options.get("true_cfg_scale", 0) > 1:
        options["negative_prompt"] = request.negative_prompt  # without one it has no negative side
    if size is not None and {"width", "height"} <= known.keys():
        options |= {"width": size[0], "height": size[1]}
        if "max_area" in known:  # or FLUX Kontext makes another size of it
            options["max_area"] = size[0] * size[1]
    text_tokens = stated_text_tokens(pipe)
    if text_tokens is not None and "max_sequence_length" in known:
        options["max_sequence_length"] = text_tokens
    options |= _pictures(request, start, known, options["num_inference_steps"])
    if "image" in known and "image" not in options and type(pipe).__name__ not in _MAY_EDIT:
        raise _without_picture(pipe, edits=_edits(known))
    return options


def _true_cfg_scale(request: Request) -> float | None:
    """As asked for; an older recipe without it and without a negative prompt had no true CFG."""
    unstated = request.replayed_from is not None and request.true_cfg_scale is None
    return 1.0 if unstated and not request.negative_prompt else request.true_cfg_scale


def _without_picture(pipe: Any, *, edits: bool) -> OptionError:
    """For a pipeline that makes nothing without a picture, which it edits or reads otherwise."""
    what = f"base of type {type(pipe).__name__}"
    if edits:
        return OptionError(what, reason="it edits a picture", hint="Give one: --init-image FILE.")
    return OptionError(
        what,
        reason="needs an input image that generate() does not know",
        hint="Call the pipeline yourself, inside adapter.use().",
    )


def check_guided(request: Request, pipe: Any, options: Mapping[str, Any]) -> None:
    """What the negative side of guidance reads needs one.

    Raises OptionError on a pipeline that calls its denoiser once for each side and does not call it
    for the negative one; warns on others at a guidance scale of 1 or less.
    """
    wanted = {"--negative-prompt": bool(request.negative_prompt)}
    for one in request.active_references:
        for flag, value in (
            ("--negative-scale", one.effective_controls.negative_scale is not None),
            ("--negative-reference", not one.encoded and bool(one.negative_reference)),
            ("--noise", not one.encoded and bool(one.noise)),
        ):
            wanted[flag] = value or wanted.get(flag, False)
    flags = ", ".join(flag for flag, value in wanted.items() if value)
    if not flags:
        return
    # FLUX.2 klein has a negative side whose text is always empty, unless it is distilled
    known = inspect.signature(type(pipe).__call__).parameters
    sided = "negative_prompt" in options or "negative_prompt_embeds" in known
    if not sided or pipe.config.get("is_distilled", False):
        raise OptionError(
            f"{flags} with a {type(pipe).__name__}",
            reason="it has no negative side of guidance",
            hint="Leave it out.",
        )
    if "true_cfg_scale" in options:
        if options["true_cfg_scale"] > 1 and options["negative_prompt"] is not None:
            return
        raise OptionError(
            f"{flags} with a {type(pipe).__name__}",
            reason="it calls its transformer for the positive side alone",
            hint="Give --true-cfg-scale above 1, or leave it out.",
        )
    scale = options.get("guidance_scale")
    if scale is not None and scale <= 1:
        warnings.warn(
            f"no effect at guidance scale {scale:g}: {flags} (it must be above 1)", stacklevel=3
        )


def check_size(size: Size, pipe: Any) -> None:
    """Raises OptionError unless the sides are multiples of the VAE's scale factor and fit."""
    factor = vae_scale_factor(pipe)
    width, height = size
    if width % factor or height % factor:
        raise OptionError(
            f"size {width}x{height}",
            reason=f"sides must be multiples of {factor} for this base",
            hint=f"Try {max(1, round(width / factor)) * factor}x"
            f"{max(1, round(height / factor)) * factor}.",
        )
    largest = largest_side(pipe)
    if largest is not None and max(size) > largest:
        raise OptionError(
            f"size {width}x{height}",
            reason=f"this base knows positions for {largest}x{largest} pixels at most",
            hint=f"Try {min(width, largest)}x{min(height, largest)}.",
        )


def with_own_defaults(request: Request, name: str | None, pipe: Any) -> dict[str, Any]:
    """The best settings of a bundled stack's pipeline, where the user gave none."""
    if name not in bundled.FOLDERS:
        return {}
    defaults: dict[str, Any] = {
        "steps": bundled.STEPS,
        "guidance_scale": bundled.guidance(name),
    }
    if request.replayed_from is None and draws_by_eta(pipe):  # a recipe without it means none
        defaults["eta"] = bundled.eta(name) or None
    return {key: value for key, value in defaults.items() if getattr(request, key) is None}


@contextmanager
def inpainting_latents(pipe: Any, start: StartImages) -> Iterator[None]:
    """Make diffusers inpaint with UNets whose input has as many channels as their latents.

    Diffusers' inpainting pipelines know two kinds of UNet by `in_channels`: 9 for one that gets the
    mask as input, 4 for a plain one, where the latents outside the mask are restored after every
    step. They refuse a plain UNet with other latents (the bundled stack's have 16 channels), or
    with a ControlNet ignore the mask. So the config says 4 while the block runs.
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


@contextmanager
def configured(pipe: Any, request: Request) -> Iterator[None]:
    """The pipeline with the recipe's scheduler and without its own bar; restored afterwards."""
    scheduler, bar = pipe.scheduler, getattr(pipe, "_progress_bar_config", {})
    try:
        pipe.set_progress_bar_config(**{**bar, "disable": True})
        if request.replayed_from is not None:
            pipe.scheduler = _scheduler(request.replayed_from.scheduler)
        yield
    finally:
        pipe.scheduler = scheduler
        pipe.set_progress_bar_config(**bar)


def _scheduler(config: Mapping[str, Any]) -> Any:
    import diffusers

    name = config["_class_name"]
    kind: Any = getattr(diffusers, name, None)
    known = inspect.isclass(kind) and issubclass(kind, diffusers.SchedulerMixin)
    if not known:
        raise OptionError(
            f"scheduler {name!r} of the recipe", reason="diffusers has no such scheduler"
        )
    try:
        return kind.from_config(dict(config))
    except Exception as error:  # a stranger may have written any value into it
        raise OptionError(
            f"scheduler {name!r} of the recipe", reason=f"invalid configuration ({error})"
        ) from error


def _pictures(
    request: Request, start: StartImages, known: Mapping[str, inspect.Parameter], steps: int
) -> dict[str, Any]:
    made: dict[str, Any] = {}
    if start.init is not None:
        made |= {"image": start.init, **_strength(request, known, steps)}
    if start.mask is not None:
        made["mask_image"] = start.mask
    if start.control is not None:
        made["control_image" if "control_image" in known else "image"] = start.control
        if "controlnet_conditioning_scale" in known:
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
            reason="less than one step is left",
            hint="Raise --strength or --steps.",
        )
    return {"strength": strength}
