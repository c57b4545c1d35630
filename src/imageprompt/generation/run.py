"""The run of a request: everything is found and opened, then loaded, shown and denoised."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from imageprompt import loading
from imageprompt.attention.cfg_layout import named_layout
from imageprompt.core.errors import OptionError
from imageprompt.generation.apply_references import Entry, showing
from imageprompt.generation.pipeline_call import (
    inpainting_latents,
    options_of,
    pipeline_for,
    with_own_defaults,
)
from imageprompt.generation.replay import versions
from imageprompt.generation.request import Request
from imageprompt.generation.result import GenerationResult
from imageprompt.generation.start_images import Size, Start
from imageprompt.loading.recipe import MIN_SIDE, Recipe

if TYPE_CHECKING:
    from PIL.Image import Image

    from imageprompt.loading import Base


def run(request: Request) -> GenerationResult:
    """Pictures of a request that is checked. Raises an ImagePromptError."""
    named_layout(request.layout)  # raises for a name that is none
    # all parts are found before anything large is loaded
    start = Start.open(request)
    folder = loading.base_folder(request.base, cached_only=request.cached_only("base"))
    entries = [Entry.open(place, request, folder) for place in request.places]
    net_folder = loading.find_controlnet(
        request.controlnet, cached_only=request.cached_only("controlnet")
    )
    base = loading.load_base(
        request.base, folder, dtype=request.dtype, device=request.device, bars=request.progress
    )
    was = request.repeats
    request.must_be("base", None if was is None else was.base, base.source)
    net, net_source = None, None
    if request.controlnet is not None:
        net, net_source = loading.load_controlnet(
            request.controlnet, net_folder, base.pipe, bars=request.progress
        )
        request.must_be("controlnet", None if was is None else was.controlnet, net_source)
    request = replace(request, **with_own_defaults(request, base.name))
    pipe = pipeline_for(base.pipe, start, net)
    size = start.size(request.size, pipe)
    start = start.fitted(size)
    options = options_of(request, pipe, start, size)
    _say_unguided(request, options)
    with loading.few_threads(base), _prepared(pipe, request):
        recipe = _recipe(request, base, pipe, options, size)
        recipe = replace(recipe, controlnet=net_source, **start.sources)
        with showing(entries, request, base, pipe) as shown, inpainting_latents(pipe, start):
            images = _denoise(pipe, request, options)
    width, height = images[0].size
    recipe = replace(recipe, width=width, height=height, shown=tuple(entry for entry, _ in shown))
    recipes = [replace(recipe, index=index) for index in request.wanted]
    return GenerationResult(images, recipes, tuple(prompt for _, prompt in shown))


def _say_unguided(request: Request, options: Mapping[str, Any]) -> None:
    """A guidance scale of 1 has no negative side: what is put there does nothing."""
    scale = options.get("guidance_scale")
    if scale is None or scale > 1:
        return
    asked = [("--negative-prompt", request.negative_prompt)]
    for place in request.places:
        if not place.ready:
            asked += [("--negative-reference", place.negative_reference), ("--noise", place.noise)]
    flags = dict.fromkeys(flag for flag, value in asked if value)
    if flags:
        warnings.warn(
            f"{', '.join(flags)} at guidance scale {scale:g}: only above 1 is "
            "there a negative side, so that it does nothing",
            stacklevel=2,
        )


def _denoise(pipe: Any, request: Request, options: Mapping[str, Any]) -> list[Image]:
    import torch

    made: list[Image] = []
    for batch in request.batches():
        # generators on the CPU draw the same noise for every device
        generators = [torch.Generator().manual_seed(request.seed + i) for i in batch]
        try:
            made_now = pipe(**options, num_images_per_prompt=len(batch), generator=generators)
        except torch.OutOfMemoryError as error:
            raise OptionError(
                f"{len(batch)} pictures side by side",
                reason="the device has not enough memory",
                hint="Lower --batch-size or --size, or use --dtype float16.",
            ) from error
        images = zip(batch, made_now.images, strict=True)
        made += [image for i, image in images if i in request.wanted]
    return made


@contextmanager
def _prepared(pipe: Any, request: Request) -> Iterator[None]:
    """The pipeline with the recipe's scheduler and the wanted bar; afterwards as it was."""
    scheduler, bar = pipe.scheduler, getattr(pipe, "_progress_bar_config", {})
    try:
        pipe.set_progress_bar_config(**{**bar, "disable": not request.progress})
        if request.repeats is not None:
            pipe.scheduler = _scheduler(request.repeats.scheduler)
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
            f"scheduler {name!r} of the recipe", reason=f"its settings make no sense ({error})"
        ) from error


def _recipe(
    request: Request, base: Base, pipe: Any, options: Mapping[str, Any], size: Size | None
) -> Recipe:
    """All of the recipe that is known before the pictures are; what it refuses, it refuses now."""
    width, height = size or (MIN_SIDE, MIN_SIDE)  # unless told, the pictures will tell
    return Recipe(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        seed=request.seed,
        index=request.wanted[0],
        num_images=request.num_images,
        batch_size=request.batch_size,
        steps=options["num_inference_steps"],
        guidance_scale=options.get("guidance_scale"),
        guidance=request.layout,
        width=width,
        height=height,
        dtype=loading.dtype_name(pipe),
        device=str(loading.device_of(pipe)),
        scheduler=_plain(pipe.scheduler.config),
        base=base.source,
        shown=(),
        strength=options.get("strength"),
        control_scale=options.get("controlnet_conditioning_scale"),
        versions=versions(),
    )


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A scheduler's configuration as JSON knows it: arrays become lists."""
    return {
        name: value.tolist() if hasattr(value, "tolist") else value
        for name, value in config.items()
    }
