"""Many requests: those that agree in what is per call share denoiser batches."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from imageprompt import loading
from imageprompt.core.errors import ImagePromptError, OptionError
from imageprompt.generation.apply_references import attach_references, image_prompt
from imageprompt.generation.pipeline_call import configured
from imageprompt.generation.request import Request
from imageprompt.generation.result import GenerationResult
from imageprompt.generation.run import (
    Cancelled,
    Prepared,
    Progress,
    Steps,
    prepare,
    rounding_as_alone,
    run_prepared,
)
from imageprompt.generation.step_noise import step_noise
from imageprompt.loading.models import Models, turn_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from imageprompt.adapter.adapter import Adapter
    from imageprompt.encoding.image_prompt import ImagePrompt
    from imageprompt.generation.reference import Reference
    from imageprompt.loading.recipe import Recipe


class Named:
    """Errors in the block say which request they belong to."""

    def __init__(self, index: int) -> None:
        self._index = index

    def __enter__(self) -> None: ...

    def __exit__(self, _: object, error: object, __: object) -> None:
        if isinstance(error, ImagePromptError):
            what = f"request {self._index}: {error.what}"
            raise type(error)(what, reason=error.reason, hint=error.hint) from error


class _Fits(Exception):
    """Leaves the block of `check_controls`."""


def check_controls(
    adapter: Adapter, prompt: ImagePrompt, reference: Reference, mask: Any = None
) -> None:
    """Raises what `Adapter.use` raises for controls that do not fit the base."""
    controls = reference.effective_controls
    # left before it can miss a call
    with suppress(_Fits), adapter.use(prompt, controls=controls, mask=mask):
        raise _Fits


@dataclass(frozen=True)
class _Job:
    """A request that is ready: its references are encoded, its recipe is known."""

    index: int
    prepared: Prepared
    prompts: tuple[ImagePrompt, ...]
    recipe: Recipe

    @property
    def shared(self) -> Hashable:
        """Jobs that agree in this can be rows of one batch."""
        request, options = self.prepared.request, self.prepared.options
        if self.prepared.start.records or request.replayed_from is not None:
            return self.index
        same = {name: value for name, value in options.items() if "prompt" not in name}
        references = tuple(
            (
                one.attachment,
                json.dumps(one.reference.effective_controls.as_dict(), sort_keys=True),
                one.mask is None,
                prompt.tokens.shape[1:],
                str(prompt.tokens.dtype),
                prompt.null_tokens is None,
            )
            for one, prompt in zip(self.prepared.opened, self.prompts, strict=True)
        )
        alike = [same, request.layout, request.guidance_until, request.eta]
        no_negative = options.get("negative_prompt") is None  # some pipelines tell it from ""
        return (
            json.dumps(alike, sort_keys=True, default=str),
            id(self.prepared.pipe),
            no_negative,
            references,
        )


def run_many(
    requests: Sequence[Request],
    models: Models,
    *,
    batch_size: int,
    on_step: Callable[[Progress], object] | None,
    on_image: Callable[[GenerationResult], object] | None,
    progress: bool,
) -> list[GenerationResult]:
    """The pictures of checked requests of one base. Raises an ImagePromptError that names one."""
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise OptionError(f"batch_size={batch_size!r}", reason="not a whole number above 0")
    if not requests:
        return []
    with turn_of(requests[0].base):
        prepared = []
        for index, request in enumerate(requests):
            with Named(index):
                prepared.append(prepare(request, models))
        cancelled: set[int] = set()
        hooks = {
            id(one.pipe): Steps(one.pipe, requests, models, on_step, cancelled) for one in prepared
        }
        base = prepared[0].base
        with loading.few_threads(base):
            jobs = [_ready(index, one, models) for index, one in enumerate(prepared)]
            results = [GenerationResult([], [], job.prompts, request=job.index) for job in jobs]
            groups: dict[Hashable, list[_Job]] = {}
            for job in jobs:
                groups.setdefault(job.shared, []).append(job)
            with _Bar(sum(len(one.indices) for one in requests), progress) as bar:
                for group in groups.values():
                    steps = hooks[id(group[0].prepared.pipe)]
                    for job, index, image in _pictures(group, models, steps, batch_size):
                        bar.update()
                        if job.index not in cancelled:
                            _deliver(results[job.index], job, index, image, on_image)
        return [
            replace(result, cancelled=len(result) < len(request.indices))
            for result, request in zip(results, requests, strict=True)
        ]


def _deliver(
    result: GenerationResult,
    job: _Job,
    index: int,
    image: Image,
    on_image: Callable[[GenerationResult], object] | None,
) -> None:
    recipe = job.prepared.recipe_of(image, index, job.recipe)
    result.images.append(image)
    result.recipes.append(recipe)
    for tell in (on_image, job.prepared.request.on_image):
        if tell is not None:
            tell(GenerationResult([image], [recipe], job.prompts, request=job.index))


def _ready(index: int, prepared: Prepared, models: Models) -> _Job:
    """Encode the references of a request. Raises an ImagePromptError that names it."""
    request, pipe = prepared.request, prepared.pipe
    with Named(index), ExitStack() as stack, configured(pipe, request):
        recipe = prepared.recipe()
        kept = attach_references(stack, prepared.opened, request, prepared.base, pipe, models)
        prompts, references = [], []
        for one in prepared.opened:
            loaded, owner = kept[one.attachment]
            prompts.append(image_prompt(one, owner, request))
            references.append(one.metadata(loaded, prompts[-1]))
            check_controls(loaded.adapter, prompts[-1], one.reference, one.mask)
    return _Job(index, prepared, tuple(prompts), replace(recipe, references=tuple(references)))


def _pictures(
    group: Sequence[_Job], models: Models, steps: Steps, batch_size: int
) -> Iterator[tuple[_Job, int, Image]]:
    """Each picture of jobs that agree, with its job and its index in the request."""
    first = group[0]
    if first.shared == first.index:  # init image, control image or replay: as alone
        for index, image in run_prepared(first.prepared, models, steps, first.index):
            yield first, index, image
        return
    rows = [(job, index) for job in group for index in job.prepared.request.indices]
    while rows := [row for row in rows if row[0].index not in steps.cancelled]:
        batch = rows[:batch_size]
        images = _denoise_or_less(batch, models, steps)
        if images is None:
            batch_size = len(batch) // 2
            continue
        rows = rows[len(batch) :]
        for (job, index), image in zip(batch, images, strict=False):
            yield job, index, image


def _denoise_or_less(
    batch: Sequence[tuple[_Job, int]], models: Models, steps: Steps
) -> list[Image] | None:
    """The pictures of a batch; none if all are cancelled, None if memory ran out.

    Raises OptionError if memory runs out for a single one.
    """
    import torch

    try:
        return _denoise(batch, models, steps)
    except Cancelled:
        return []
    except torch.OutOfMemoryError as error:
        if len(batch) == 1:
            raise OptionError(
                f"request {batch[0][0].index}: one picture",
                reason="the device has not enough memory",
                hint="Lower the size, or use dtype='float16'.",
            ) from error
    if torch.cuda.is_available():  # outside of the handler, which keeps the batch's tensors
        torch.cuda.empty_cache()
    return None


def _denoise(batch: Sequence[tuple[_Job, int]], models: Models, steps: Steps) -> list[Image]:
    """One call of the pipeline; each row has its own text, seed, references and masks."""
    import torch

    jobs = [job for job, _ in batch]
    first = jobs[0].prepared
    request, pipe = first.request, first.pipe
    opened = [one for job in jobs for one in job.prepared.opened]
    options = dict(first.options)
    options["prompt"] = [job.prepared.options["prompt"] for job in jobs]
    if options.get("negative_prompt") is not None:
        options["negative_prompt"] = [job.prepared.options["negative_prompt"] for job in jobs]
    with ExitStack() as stack, configured(pipe, request), steps:
        kept = attach_references(stack, opened, request, first.base, pipe, models)
        for slot, one in enumerate(first.opened):
            masks = [job.prepared.opened[slot].mask for job in jobs]
            use = kept[one.attachment][0].adapter.use(
                _together([job.prompts[slot] for job in jobs]),
                guidance=request.layout,
                controls=one.reference.effective_controls,
                mask=None if one.mask is None else masks,
            )
            stack.enter_context(use)
        generators = [
            torch.Generator().manual_seed(job.prepared.request.seed + i) for job, i in batch
        ]
        stack.enter_context(rounding_as_alone(pipe, len(batch)))
        stack.enter_context(step_noise(pipe, generators, request.eta))
        images: list[Image] = pipe(
            **options,
            **steps.options(_parts(batch), None),
            num_images_per_prompt=1,
            generator=generators,
        ).images
    return images


def _parts(batch: Sequence[tuple[_Job, int]]) -> list[tuple[int, range]]:
    """The batch as (request, its pictures), in the order of the rows."""
    pictures: dict[int, list[int]] = {}
    for job, index in batch:
        pictures.setdefault(job.index, []).append(index)
    return [(job, range(found[0], found[-1] + 1)) for job, found in pictures.items()]


def _together(prompts: Sequence[ImagePrompt]) -> ImagePrompt:
    """One image prompt with a row for each of these, which are for one prompt each."""
    import torch

    from imageprompt.encoding.image_prompt import ImagePrompt

    null = [prompt.null_tokens for prompt in prompts if prompt.null_tokens is not None]
    return ImagePrompt(
        torch.cat([prompt.tokens for prompt in prompts]),
        torch.cat(null) if null else None,
        prompts[0].metadata,
    )


class _Bar:
    """One bar that counts pictures, if it is wanted."""

    def __init__(self, total: int, shown: bool) -> None:
        self._bar: Any = None
        if shown:
            from tqdm import tqdm

            self._bar = tqdm(total=total, unit="picture")

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self) -> None:
        if self._bar is not None:
            self._bar.update()
