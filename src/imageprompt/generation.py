"""From a request to pictures and the recipe that made them, on any diffusers pipeline."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imageprompt import bundled
from imageprompt.controls import Scale
from imageprompt.errors import OptionError, PromptError
from imageprompt.files import check_folder
from imageprompt.recipe import MIN_SIDE, Recipe, Source, read_picture, write_picture
from imageprompt.request import Request, as_list, request_of, versions

if TYPE_CHECKING:
    from PIL import Image

    from imageprompt.adapter import Adapter
    from imageprompt.encoders.pictures import PictureSource
    from imageprompt.ingredients import AdapterChoice, Base
    from imageprompt.prompt import ImagePrompt

__all__ = ["GenerationResult", "generate", "repeat"]


@dataclass(frozen=True)
class GenerationResult:
    """Pictures, the recipe of each, and the image prompt that they share."""

    images: list[Image.Image]
    recipes: list[Recipe]
    image_prompt: ImagePrompt | None

    @property
    def recipe(self) -> Recipe:
        """The recipe of the first picture; the others differ in `index` alone."""
        return self.recipes[0]

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write `0001.png`, `0002.png` ... with their recipes inside; returns the paths.

        Numbers go on after those in the folder: nothing is overwritten.
        """
        folder = check_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tokens = None if self.image_prompt is None else _as_bytes(self.image_prompt)
        taken = [int(path.stem) for path in folder.glob("*.png") if path.stem.isdecimal()]
        paths = []
        numbered = zip(self.images, self.recipes, strict=True)
        for number, (image, recipe) in enumerate(numbered, start=max(taken, default=0) + 1):
            path = folder / f"{number:04d}.png"
            write_picture(path, image, recipe, tokens)
            paths.append(path)
        return paths


def generate(
    prompt: str = "",
    reference: PictureSource | Sequence[PictureSource] | None = None,
    *,
    base: Any = None,
    adapter: str | os.PathLike[str] | Adapter | None = None,
    encoder: Any = None,
    scale: Scale = 0.8,
    seed: int = 1,
    num_images: int = 1,
    steps: int | None = None,
    guidance_scale: float | None = None,
    negative_prompt: str = "",
    size: tuple[int, int] | None = None,
    dtype: str | None = None,
    device: str | None = None,
    image_prompt: ImagePrompt | str | os.PathLike[str] | None = None,
    batch_size: int = 4,
    progress: bool = True,
) -> GenerationResult:
    """Pictures from reference picture(s) and, optionally, words.

    - `reference`: a path, a file's bytes, a PIL picture, or a list of these (one image prompt of
      several references). `image_prompt` (an ImagePrompt or its file) takes its place. With
      neither, only `scale=0` makes sense: words alone, the base as it is.
    - `base`: folder or Hub id of a diffusers pipeline, or a loaded pipeline; None is the bundled
      tiny stack. `adapter`: file, Hub id, loaded Adapter, or the short name of one that the base's
      folder carries (the bundled stack: "base", "plus"; None is "plus"). `encoder`: folder, Hub id
      or model; None looks in the base, then beside the adapter file.
    - `scale` 0..2, or a mapping of sites to numbers. `size` is (width, height) in pixels.
    - Picture i has a generator of its own, seeded with `seed + i`. `batch_size` of them are
      denoised side by side; rounding may depend on that number, nothing else does.

    Raises an ImagePromptError before anything is computed wherever that can be told.
    """
    return _run(
        Request(
            prompt=prompt,
            references=as_list(reference),
            base=base,
            adapter=adapter,
            encoder=encoder,
            scale=scale,
            seed=seed,
            num_images=num_images,
            steps=steps,
            guidance_scale=guidance_scale,
            negative_prompt=negative_prompt,
            size=size,
            dtype=dtype,
            device=device,
            image_prompt=image_prompt,
            batch_size=batch_size,
            progress=progress,
        )
    )


def repeat(picture: str | os.PathLike[str], **changes: Any) -> GenerationResult:
    """Make a picture again, bit for bit, from the recipe in its PNG file.

    `changes` are arguments of `generate` that replace what the recipe says; without `num_images` or
    `seed` among them, only this one picture of its request is made. Base and adapter are the
    bundled ones, local paths, or in the Hub's local cache: a recipe never makes this download
    anything, only a `base` or `adapter` among the changes does. Unless they are among the changes,
    they must be what they were. The same bits need the same machine and library versions; where
    those differ, a warning says so.
    """
    recipe, tokens = read_picture(picture)
    known = inspect.signature(generate).parameters
    for name in changes:
        if name not in known:
            raise OptionError(f"option {name!r}", rule="generate() has no such argument")
    request = request_of(recipe, changes)
    if recipe.adapter is not None and not request.references and request.image_prompt is None:
        if tokens is None:
            from imageprompt.ingredients import same_references

            request = replace(request, references=same_references(recipe.references))
        else:
            request = replace(request, image_prompt=_from_bytes(tokens))
    return _run(request)


@dataclass(frozen=True)
class _Shown:
    """What the adapter showed to the base, for the recipe."""

    prompt: ImagePrompt
    adapter: Source
    encoder: Source | None


def _run(request: Request) -> GenerationResult:
    from imageprompt import ingredients

    request.check()
    pictures, references = ingredients.open_references(request.references)
    # all parts are found before anything large is loaded
    folder = ingredients.base_folder(request.base, cached_only=request.cached_only("base"))
    choice = None
    if not request.words_alone and isinstance(request.adapter, str | os.PathLike | None):
        choice = ingredients.find_adapter(
            request.adapter, folder, cached_only=request.cached_only("adapter")
        )
    base = ingredients.load_base(
        request.base, folder, dtype=request.dtype, device=request.device, bars=request.progress
    )
    request.must_be("base", base.source)
    options = _options(request, base)
    with ingredients.few_threads(base), _prepared(base.pipe, request):
        recipe = _recipe(request, base, options, references)
        if request.words_alone:
            images, shown = _denoise(base.pipe, request, options), None
        else:
            images, shown = _denoise_shown(request, base, choice, pictures, options)
    return _result(request, recipe, images, shown)


def _denoise_shown(
    request: Request,
    base: Base,
    choice: AdapterChoice | None,
    pictures: Sequence[Image.Image],
    options: Mapping[str, Any],
) -> tuple[list[Image.Image], _Shown]:
    """With the adapter attached, and detached again afterwards."""
    from imageprompt import ingredients

    if choice is None:
        adapter, source = request.adapter, ingredients.brought_adapter(request.adapter)
    else:
        adapter, source = ingredients.load_adapter(choice, base.pipe)
    request.must_be("adapter", source)
    encoder, encoder_name = None, None
    if pictures and (adapter.encoder is None or request.encoder is not None):
        encoder, encoder_name = ingredients.find_encoder(
            request.encoder, adapter.spec, base, source.name
        )
    with ingredients.quiet_loading(not request.progress):
        adapter.attach(base.pipe, encoder=encoder)
    try:
        prompt = adapter.encode(pictures) if pictures else _image_prompt(request.image_prompt)
        with adapter.use(prompt, scale=request.scale):
            images = _denoise(base.pipe, request, options)
    finally:
        adapter.detach()
    return images, _Shown(prompt, source, _encoder_source(request, prompt, encoder_name))


def _encoder_source(request: Request, prompt: ImagePrompt, name: str | None) -> Source | None:
    """The encoder that made the prompt; a repetition without pictures keeps the recipe's words."""
    made_by = prompt.metadata.get("encoder")
    was = None if request.repeats is None else request.repeats.encoder
    if was is not None and was.hash == made_by:
        return was
    return None if made_by is None else Source(name=name, hash=made_by)


def _denoise(pipe: Any, request: Request, options: Mapping[str, Any]) -> list[Image.Image]:
    import torch

    made: list[Image.Image] = []
    for batch in request.batches():
        # generators on the CPU draw the same noise for every device
        generators = [torch.Generator().manual_seed(request.seed + i) for i in batch]
        try:
            made_now = pipe(**options, num_images_per_prompt=len(batch), generator=generators)
        except torch.OutOfMemoryError as error:
            raise OptionError(
                f"{len(batch)} pictures side by side",
                rule="the device has not enough memory",
                remedy="Lower --batch-size or --size, or use --dtype float16.",
            ) from error
        images = zip(batch, made_now.images, strict=True)
        made += [image for i, image in images if i in request.wanted]
    return made


def _options(request: Request, base: Base) -> dict[str, Any]:
    """The pipeline's arguments, its own defaults spelt out for the recipe. Raises OptionError."""
    known = inspect.signature(type(base.pipe).__call__).parameters
    if not {"prompt", "num_inference_steps", "generator", "num_images_per_prompt"} <= known.keys():
        raise OptionError(
            f"base of type {type(base.pipe).__name__}",
            rule="it makes no pictures from words",
            remedy="Use a text-to-image pipeline.",
        )
    steps, guidance = request.steps, request.guidance_scale
    if base.name == bundled.NAME:
        steps, guidance = steps or bundled.STEPS, bundled.GUIDANCE if guidance is None else guidance
    options: dict[str, Any] = {"prompt": request.prompt}
    options["num_inference_steps"] = steps or known["num_inference_steps"].default
    for name, value in (("guidance_scale", guidance), ("negative_prompt", request.negative_prompt)):
        if name in known:
            options[name] = known[name].default if value in (None, "") else value
        elif value not in (None, ""):
            raise OptionError(
                f"{name.replace('_', ' ')} {value!r}", rule="this base has no such option"
            )
    if request.size is not None:
        factor = getattr(base.pipe, "vae_scale_factor", 8)
        width, height = request.size
        if width % factor or height % factor:
            raise OptionError(
                f"size {width}x{height}",
                rule=f"this base makes sides that are multiples of {factor}",
                remedy=f"Try {max(1, round(width / factor)) * factor}x"
                f"{max(1, round(height / factor)) * factor}.",
            )
        options |= {"width": width, "height": height}
    return options


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
            f"scheduler {name!r} of the recipe", rule="diffusers has no such scheduler"
        )
    try:
        return kind.from_config(dict(config))
    except Exception as error:  # a stranger may have written any value into it
        raise OptionError(
            f"scheduler {name!r} of the recipe", rule=f"its settings make no sense ({error})"
        ) from error


def _recipe(
    request: Request, base: Base, options: Mapping[str, Any], references: tuple[Source, ...]
) -> Recipe:
    """All of the recipe that is known before the pictures are; what it refuses, it refuses now."""
    from imageprompt.ingredients import device_of, dtype_name

    width, height = request.size or (MIN_SIDE, MIN_SIDE)  # unless told, the pictures will tell
    if request.repeats is not None and not references:
        references = request.repeats.references
    return Recipe(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        scale=request.scale,
        seed=request.seed,
        index=request.wanted[0],
        num_images=request.num_images,
        batch_size=request.batch_size,
        steps=options["num_inference_steps"],
        guidance_scale=options.get("guidance_scale"),
        width=width,
        height=height,
        dtype=dtype_name(base.pipe),
        device=str(device_of(base.pipe)),
        scheduler=_plain(base.pipe.scheduler.config),
        base=base.source,
        adapter=None,
        encoder=None,
        references=references,
        versions=versions(),
    )


def _result(
    request: Request, recipe: Recipe, images: list[Image.Image], shown: _Shown | None
) -> GenerationResult:
    width, height = images[0].size
    recipe = replace(recipe, width=width, height=height)
    if shown is not None:
        recipe = replace(recipe, adapter=shown.adapter, encoder=shown.encoder)
    recipes = [replace(recipe, index=index) for index in request.wanted]
    return GenerationResult(images, recipes, None if shown is None else shown.prompt)


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A scheduler's configuration as JSON knows it: arrays become lists."""
    return {
        name: value.tolist() if hasattr(value, "tolist") else value
        for name, value in config.items()
    }


# ── small things ────────────────────────────────────────────────────────────────────────────────


def _image_prompt(source: Any) -> ImagePrompt:
    from imageprompt.prompt import ImagePrompt

    prompt = source if isinstance(source, ImagePrompt) else ImagePrompt.load(source)
    if len(prompt) != 1:
        raise PromptError(
            f"an image prompt for {len(prompt)} prompts",
            rule="generate() has one",
            remedy="Use adapter.use() and the pipeline itself.",
        )
    return prompt


def _as_bytes(prompt: ImagePrompt) -> bytes:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        path = Path(folder) / "prompt.safetensors"
        prompt.save(path)
        return path.read_bytes()


def _from_bytes(data: bytes) -> ImagePrompt:
    from tempfile import TemporaryDirectory

    from imageprompt.prompt import ImagePrompt

    with TemporaryDirectory() as folder:
        path = Path(folder) / "prompt.safetensors"
        path.write_bytes(data)
        return ImagePrompt.load(path)
