"""The run of a request: open everything, load the models, apply the references, denoise."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from math import isinf
from typing import TYPE_CHECKING, Any

from imageprompt import loading
from imageprompt.attention.cfg_layout import named_layout
from imageprompt.core.errors import OptionError
from imageprompt.generation.apply_references import OpenedReference, apply_references
from imageprompt.generation.pipeline_call import (
    Size,
    StartImages,
    check_guided,
    check_size,
    configured,
    inpainting_latents,
    options_of,
    pipeline_for,
    with_own_defaults,
)
from imageprompt.generation.request import Request
from imageprompt.generation.result import GenerationResult
from imageprompt.generation.step_noise import eta_options, step_noise
from imageprompt.loading.models import Models, turn_of
from imageprompt.loading.recipe import AssetRecord, Recipe, library_versions
from imageprompt.loading.recipe.limits import MIN_SIDE

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image

    from imageprompt.loading import LoadedPipeline


@dataclass(frozen=True)
class Prepared:
    """A request whose files are open and whose base is loaded."""

    request: Request
    base: LoadedPipeline
    pipe: Any
    opened: Sequence[OpenedReference]
    start: StartImages
    size: Size | None
    options: Mapping[str, Any]
    net_record: AssetRecord | None

    def recipe(self) -> Recipe:
        """The recipe, still without references. Asks the pipeline as `configured` leaves it."""
        recipe = _recipe(self.request, self.base, self.pipe, self.options, self.size)
        return replace(recipe, controlnet=self.net_record, **self.start.records).check()

    def recipe_of(self, image: Image, index: int, recipe: Recipe) -> Recipe:
        """The request's recipe for one picture. Warns about a size that was not asked for."""
        width, height = image.size
        if self.size is not None and image.size != self.size:
            warnings.warn(
                f"the base makes pictures of {width}x{height} pixels, "
                f"not {self.size[0]}x{self.size[1]}",
                stacklevel=4,
            )
        return replace(recipe, index=index, width=width, height=height)


def prepare(request: Request, models: Models) -> Prepared:
    """Open the files of a checked request, then load what is not loaded."""
    named_layout(request.layout)  # raises for an unknown name
    # all files are found and opened before anything large is loaded
    start = _open_start_images(request)
    folder = loading.base_folder(request.base, cached_only=request.cached_only("base"))
    opened = [OpenedReference.open(one, request, folder) for one in request.active_references]
    net_folder = _find_controlnet(request)
    base = models.base(request.base, folder, request.dtype, request.device, request.progress)
    recorded = request.replayed_from
    request.check_same_hash("base", None if recorded is None else recorded.base, base.record)
    net, net_record = _load_controlnet(request, net_folder, base, models)
    request = replace(request, **with_own_defaults(request, base.name, base.pipe))
    pipe = pipeline_for(base.pipe, start, net, models)
    size, start = _fit(request, start, pipe)
    options = options_of(request, pipe, start, size)
    with configured(pipe, request):  # it is the recipe's scheduler that may draw by `eta`
        options |= eta_options(request.eta, pipe)
    check_guided(request, pipe, options)
    if request.guidance_until is not None:
        from imageprompt.generation.guidance_cutoff import check_cutoff

        scale = options.get("guidance_scale")
        check_cutoff(request.guidance_until, pipe, scale, request.layout)
    return Prepared(request, base, pipe, opened, start, size, options, net_record)


def run(request: Request, models: Models) -> GenerationResult:
    """The pictures of a checked request, by models that stay loaded. Raises an ImagePromptError."""
    with turn_of(request.base):
        return _run(prepare(request, models), models)


def _run(prepared: Prepared, models: Models) -> GenerationResult:
    request, pipe = prepared.request, prepared.pipe
    with loading.few_threads(prepared.base), configured(pipe, request):
        recipe = prepared.recipe()
        with _applied(prepared, models) as applied:
            recipe = replace(recipe, references=tuple(metadata for metadata, _ in applied))
            prompts = tuple(prompt for _, prompt in applied)
            result = GenerationResult([], [], prompts)
            steps = Steps(pipe, [request], models)
            for index, image in _denoise(prepared, steps, 0):
                result.images.append(image)
                result.recipes.append(prepared.recipe_of(image, index, recipe))
                if request.on_image is not None:
                    request.on_image(GenerationResult([image], result.recipes[-1:], prompts))
            if steps.cancelled:
                result = replace(result, cancelled=True)
    return result


def run_prepared(
    prepared: Prepared, models: Models, steps: Steps, number: int
) -> Iterator[tuple[int, Image]]:
    """The pictures of request `number` of several, with their indices."""
    with configured(prepared.pipe, prepared.request), _applied(prepared, models):
        yield from _denoise(prepared, steps, number)


@contextmanager
def _applied(prepared: Prepared, models: Models) -> Iterator[list[Any]]:
    """The pipeline with the request's references and init image."""
    request, base, pipe = prepared.request, prepared.base, prepared.pipe
    with (
        apply_references(prepared.opened, request, base, pipe, models) as applied,
        inpainting_latents(pipe, prepared.start),
    ):
        yield applied


def _open_start_images(request: Request) -> StartImages:
    if request.init_image is None and request.control_image is None:
        return StartImages()
    from imageprompt.generation.start_images import open_start_images

    return open_start_images(request)


def _fit(request: Request, start: StartImages, pipe: Any) -> tuple[Size | None, StartImages]:
    """The size of the pictures (None leaves it to the pipeline), and the start images in it."""
    if request.size is not None:
        check_size(request.size, pipe)
    if not start.records:
        return request.size, start
    from imageprompt.generation.start_images import fit, own_size

    size = request.size or own_size(start, pipe)
    return size, fit(start, size)


def _find_controlnet(request: Request) -> Path | None:
    """The folder of a ControlNet that is given by name."""
    if request.controlnet is None:
        return None
    from imageprompt.loading.controlnet import find_controlnet

    return find_controlnet(request.controlnet, cached_only=request.cached_only("controlnet"))


def _load_controlnet(
    request: Request, folder: Path | None, base: LoadedPipeline, models: Models
) -> tuple[Any, AssetRecord | None]:
    if request.controlnet is None:
        return None, None
    net, record = models.controlnet(request.controlnet, folder, base.pipe, request.progress)
    recorded = request.replayed_from
    request.check_same_hash("controlnet", None if recorded is None else recorded.controlnet, record)
    return net, record


# ── steps ───────────────────────────────────────────────────────────────────────────────────────


class Cancelled(BaseException):
    """Ends the loop of a pipeline; never reaches the user."""


@dataclass(frozen=True)
class Progress:
    """What `on_step` gets: which pictures, and how many of their denoising steps are done."""

    request: Request
    index: int
    """Position of the request in `Engine.generate_many`; 0 in `generate`."""
    pictures: range
    """Indices of the request's pictures that are denoised together."""
    step: int
    """Steps that are done, 1 to `total`."""
    total: int
    _steps: Steps = field(repr=False)
    _rows: range = field(repr=False)
    _count: int = field(repr=False)

    @property
    def picture(self) -> int:
        """The first of `pictures`."""
        return self.pictures[0]

    def preview(self) -> list[Image]:
        """A small picture of each of `pictures`, as this step predicts it; made when asked for."""
        return self._steps.preview(self._rows, self._count)

    def cancel(self) -> None:
        """End this request after this step. Its finished pictures are returned."""
        self._steps.cancelled.add(self.index)


class Steps:
    """The step hook of a pipeline: reports progress, and ends its loop when it is cancelled."""

    def __init__(
        self,
        pipe: Any,
        requests: Sequence[Request],
        models: Models,
        on_step: Callable[[Progress], object] | None = None,
        cancelled: set[int] | None = None,
    ) -> None:
        self._requests = requests
        self._hooks = [one.on_step if on_step is None else on_step for one in requests]
        self._wanted = any(hook is not None for hook in self._hooks)
        self._pipe, self._models = pipe, models
        self._observer: Any = None
        self._observing = ExitStack()
        known = inspect.signature(type(pipe).__call__).parameters
        self._by_step = "callback_on_step_end" in known
        self.cancelled: set[int] = set() if cancelled is None else cancelled
        if self._wanted and not self._by_step:
            raise OptionError(
                f"on_step with a {type(pipe).__name__}",
                reason="this pipeline has no callback for steps (callback_on_step_end)",
                hint="Leave on_step out; on_image tells of each finished picture.",
            )

    def __enter__(self) -> Steps:
        if self._wanted:
            from imageprompt.generation.preview import Observer

            self._observer = Observer(self._pipe)
            self._observing.enter_context(self._observer.observing())
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._observing.close()
        if kind is not None or self.cancelled:  # the pipeline's own end was not reached
            getattr(self._pipe, "maybe_free_model_hooks", lambda: None)()

    def options(
        self, parts: Sequence[tuple[int, range]], done: Callable[[int, int], None] | None
    ) -> dict[str, Any]:
        """The pipeline's arguments that report its steps; `parts` are (request, its pictures)."""
        cutoff = self._cutoff(self._requests[parts[0][0]])
        if not self._by_step or (done is None and cutoff is None and not self._wanted):
            return {}

        def step_end(pipe: Any, step: int, _: Any, outputs: dict[str, Any]) -> dict[str, Any]:
            total = max(getattr(pipe, "num_timesteps", None) or 1, step + 1)
            if done is not None:
                done(step + 1, total)
            self._tell(parts, step + 1, total)
            if cutoff is not None:
                cutoff(pipe, step + 1, total, outputs)
            return outputs

        tensors = {} if cutoff is None else {"callback_on_step_end_tensor_inputs": cutoff.inputs}
        return {"callback_on_step_end": step_end, **tensors}

    def _cutoff(self, request: Request) -> Any:
        """What stops guidance in one call of the pipeline; None if nothing does."""
        if request.guidance_until is None:
            return None
        from imageprompt.generation.guidance_cutoff import GuidanceCutoff

        return GuidanceCutoff(self._pipe, request.guidance_until)

    def _tell(self, parts: Sequence[tuple[int, range]], step: int, total: int) -> None:
        first, count = 0, sum(len(pictures) for _, pictures in parts)
        for index, pictures in parts:
            rows = range(first, first + len(pictures))
            first = rows.stop
            hook, request = self._hooks[index], self._requests[index]
            if index not in self.cancelled and hook is not None:
                hook(Progress(request, index, pictures, step, total, self, rows, count))
        if all(index in self.cancelled for index, _ in parts):
            raise Cancelled

    def preview(self, rows: range, count: int) -> list[Image]:
        from imageprompt.generation.preview import LatentPreview

        vae = getattr(self._pipe, "vae", None)
        # the VAE is kept beside its map, so that no other can take over its id
        fitted, _ = self._models.previews.get(id(vae), lambda: (LatentPreview.fit(self._pipe), vae))
        predicted: list[Image] = fitted.pictures(self._observer.predicted(rows, count))
        return predicted


# ── denoising ───────────────────────────────────────────────────────────────────────────────────


def _denoise(prepared: Prepared, steps: Steps, number_of: int) -> Iterator[tuple[int, Image]]:
    """Each requested picture with its index, as soon as its batch is finished."""
    import torch

    pipe, request, options = prepared.pipe, prepared.request, prepared.options
    with steps, _Progress(pipe, request) as progress:
        for number, batch in enumerate(request.batches()):
            # generators on the CPU draw the same noise for every device
            generators = [torch.Generator().manual_seed(request.seed + i) for i in batch]
            try:
                with rounding_as_alone(pipe, len(batch)), step_noise(pipe, generators, request.eta):
                    images = pipe(
                        **options,
                        **steps.options([(number_of, batch)], progress.step(number, batch)),
                        num_images_per_prompt=len(batch),
                        generator=generators,
                    ).images
            except Cancelled:
                return
            except torch.OutOfMemoryError as error:
                raise OptionError(
                    f"{len(batch)} pictures in one batch",
                    reason="the device has not enough memory",
                    hint="Lower --batch-size or --size, or use --dtype float16.",
                ) from error
            progress.finish(number, batch)
            for index, image in zip(batch, images, strict=True):
                if index in request.indices:
                    yield index, image


def rounding_as_alone(pipe: Any, pictures: int) -> AbstractContextManager[None]:
    """While the block runs, each of `pictures` in a batch rounds as alone, where it can."""
    if pictures == 1:
        return nullcontext()
    from imageprompt.generation.batch_invariance import batch_invariant

    return batch_invariant(pipe, pictures)


class _Progress:
    """Reports `picture i of n` and the denoising steps done to `on_progress`, or in one bar."""

    def __init__(self, pipe: Any, request: Request) -> None:
        self._pipe, self._request = pipe, request
        self._batches = len(list(request.batches()))
        self._report = request.on_progress
        if self._report is None and request.progress:
            self._report = self._show
        self._bar: Any = None
        self._steps = 1

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def step(self, number: int, batch: range) -> Callable[[int, int], None] | None:
        """To be called with (steps done, all steps) of this batch."""
        if self._report is None:
            return None

        def done(step: int, total: int) -> None:
            self._steps = total
            self._tell(batch, number * total + step)

        return done

    def finish(self, number: int, batch: range) -> None:
        self._tell(batch, (number + 1) * self._steps)

    def _tell(self, batch: range, done: int) -> None:
        if self._report is None:
            return
        indices = self._request.indices
        inside = [indices.index(i) + 1 for i in batch if i in indices]
        which = f"picture {inside[0]}" if len(inside) == 1 else f"pictures {inside[0]}-{inside[-1]}"
        self._report(f"{which} of {len(indices)}", done, self._batches * self._steps)

    def _show(self, what: str, done: int, total: int) -> None:
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(total=total, unit="step")
        self._bar.total = total
        self._bar.set_description(what, refresh=False)
        self._bar.update(done - self._bar.n)


# ── recipe ──────────────────────────────────────────────────────────────────────────────────────


def _recipe(
    request: Request,
    base: LoadedPipeline,
    pipe: Any,
    options: Mapping[str, Any],
    size: Size | None,
) -> Recipe:
    """The recipe as far as it is known before the pictures, still without references."""
    width, height = size or (MIN_SIDE, MIN_SIDE)  # replaced by the size of the pictures
    return Recipe(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        seed=request.seed,
        index=request.indices[0],
        num_images=request.num_images,
        batch_size=request.batch_size,
        steps=options["num_inference_steps"],
        guidance_scale=options.get("guidance_scale"),
        guidance_until=request.guidance_until,
        eta=request.eta,
        true_cfg_scale=options.get("true_cfg_scale"),
        guidance=request.layout,
        width=width,
        height=height,
        dtype=base.dtype,
        device=str(loading.device_of(pipe)),
        scheduler=_plain(pipe.scheduler),
        base=base.record,
        references=(),
        strength=options.get("strength"),
        control_scale=options.get("controlnet_conditioning_scale"),
        versions=library_versions() | base.versions,
    )


def _plain(scheduler: Any) -> dict[str, Any]:
    """A scheduler's class and configuration with arrays as lists, for JSON.

    JSON has no infinity, which only defaults are: they are left out, and so come back.
    """
    known = inspect.signature(type(scheduler)).parameters
    defaults = {name: parameter.default for name, parameter in known.items()}
    config = {
        name: value.tolist() if hasattr(value, "tolist") else value
        for name, value in scheduler.config.items()
        if not (isinstance(value, float) and isinf(value) and defaults.get(name) == value)
    }
    return config | {"_class_name": type(scheduler).__name__}  # missing if it was built in memory
