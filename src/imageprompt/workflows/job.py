"""A run of a workflow: an engine for its steps, and what they hand over."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from imageprompt.core import bundled
from imageprompt.core.console import Bars
from imageprompt.core.errors import OptionError
from imageprompt.generation.reference import as_list
from imageprompt.workflows.inputs import MODELS, PICTURES, SAMPLING
from imageprompt.workflows.result import WorkflowPicture, WorkflowResult

if TYPE_CHECKING:
    from PIL.Image import Image

    from imageprompt.evaluation.image_quality.picture import PictureQuality
    from imageprompt.generation.engine import Engine
    from imageprompt.generation.result import GenerationResult
    from imageprompt.workflows.contract import Workflow

ALIKE = 2.0
"""Mean difference of two pictures' pixels, 0..255, below which they are the same picture."""
_THUMBNAIL = 32  # px; pictures are compared at this size
_ABOUT_SIZE = ("small", "soft")
"""Problems of references that do not matter to a base with pictures of 64 pixels."""
_PARTS = 100  # progress of one picture is told in such parts


class Job:
    """What the steps of a workflow work with.

    `generate` calls the engine; `add` hands over a picture; `measured`, `notes` and `shown` are
    filled by the steps; `expect` says how many pictures will be generated.
    """

    def __init__(
        self,
        workflow: Workflow,
        inputs: Any,
        engine: Engine | None,
        on_progress: Callable[[str, int, int], object],
    ) -> None:
        self.workflow, self.inputs = workflow, inputs
        self._given, self._on_progress = engine, on_progress
        self._expected, self._generated, self._steps = 0, 0, 0
        self._checks: list[PictureQuality] = []
        self.pictures: list[WorkflowPicture] = []
        self.measured: dict[str, Any] = {}
        self.notes: list[str] = []
        self.shown: list[tuple[str, Image]] = []
        self.files: dict[str, Callable[[Path], object]] = {}

    # ── generating ──────────────────────────────────────────────────────────────────────────────

    @cached_property
    def engine(self) -> Engine:
        """The engine of the inputs base, adapter, encoder, dtype and device; loaded when asked."""
        if self._given is not None:
            return self._given
        from imageprompt.generation.engine import Engine

        return Engine(**{name: getattr(self.inputs, name, None) for name in MODELS})

    @property
    def pipe(self) -> Any:
        """The pipeline of the base."""
        return self.engine.loaded.pipe

    @property
    def on_bundled_base(self) -> bool:
        """Is the base a bundled stack whose scenes the judge reads?"""
        if self._given is None:
            base = getattr(self.inputs, "base", None)
            return base is None or base in bundled.ONE_OBJECT
        return self.engine.loaded.name in bundled.ONE_OBJECT

    def expect(self, pictures: int) -> None:
        """So many pictures will be generated in all: for the progress."""
        self._expected = pictures

    def generate(self, prompt: str = "", reference: Any = None, **arguments: Any) -> Any:
        """`Engine.generate` with seed, steps and guidance scale of the inputs where none are given.

        Returns its GenerationResult. Raises an ImagePromptError.
        """
        defaults = {name: getattr(self.inputs, name, None) for name in SAMPLING}
        defaults["seed"] = getattr(self.inputs, "seed", 1)
        arguments = {k: v for k, v in defaults.items() if v is not None} | arguments
        count = arguments.get("num_images", 1)
        total = max(self._expected, self._generated + count)

        def report(what: str, done: int, steps: int) -> None:
            part = math.floor(count * _PARTS * done / max(steps, 1))
            words = f"{self.workflow.name}: picture {self._generated + 1} of {total}"
            self._on_progress(words, self._generated * _PARTS + part, total * _PARTS)

        result: GenerationResult = self.engine.generate(
            prompt, reference, **arguments, progress=False, on_progress=report
        )
        recipe = result.recipe
        steps = recipe.steps if recipe.strength is None else int(recipe.steps * recipe.strength)
        self._generated += len(result)
        self._steps += steps * len(result)
        return result

    def report(self, what: str, done: int, total: int) -> None:
        """Progress of work that is not generating: "training", steps done, all steps."""
        self._on_progress(f"{self.workflow.name}: {what}", done, total)

    def check_references(self) -> None:
        """Check the workflow's references; notes their problems. Raises PictureError, OptionError.

        OptionError is for one picture in two places.
        """
        self._checks += _check_references(self)

    def count(self, pictures: int, denoising_steps: int) -> None:
        """Pictures that were generated elsewhere than by `generate`: for the costs."""
        self._generated += pictures
        self._steps += denoising_steps

    def check(self, name: str, pictures: Sequence[Any], *, size: bool = True) -> None:
        """Check the quality of pictures that the steps have found themselves; notes the problems.

        One line a problem, however many pictures have it. Without `size`, that they are small or
        soft is no problem. Raises PictureError for one that cannot be read.
        """
        from imageprompt.evaluation.image_quality.picture import check

        count: dict[str, int] = {}
        for source in pictures:
            quality = check(source)
            self._checks.append(quality)
            for problem in quality.problems():
                if problem not in _ABOUT_SIZE or (size and not self.on_bundled_base):
                    count[problem] = count.get(problem, 0) + 1
        of = f"of {len(pictures)} checked pictures"
        self.notes += [f"{name}: {number} {of}: {what}" for what, number in count.items()]

    # ── handing over ────────────────────────────────────────────────────────────────────────────

    def add(
        self,
        label: str,
        image: Image,
        result: GenerationResult | None = None,
        index: int = 0,
        **measured: Any,
    ) -> None:
        """Hand over a picture; `result` is the generation that it comes from, as picture `index`.

        Further arguments are figures of this picture.
        """
        recipe, tokens = None, list[bytes | None]()
        if result is not None:
            recipe = result.recipes[index]
            tokens = [prompt.to().as_bytes() for prompt in result.image_prompts]
        self.pictures.append(WorkflowPicture(label, image, recipe, tokens, rounded(measured)))

    def show(self, label: str, image: Image) -> None:
        """Show a picture on the sheet that is no result: an input, a baseline."""
        self.shown.append((label, image))

    def file(self, suffix: str, write: Callable[[Path], object]) -> None:
        """A further file, such as `-curve.png`; `write` gets the path to write to."""
        self.files[suffix] = write

    def summarise(self) -> None:
        """The means of the pictures' own figures as those of the run."""
        for name in dict.fromkeys(name for one in self.pictures for name in one.measured):
            found = [one.measured.get(name) for one in self.pictures]
            values = [value for value in found if isinstance(value, int | float)]
            self.measured[name] = float(np.mean(values)) if values else None

    def result(self, started: float) -> WorkflowResult:
        return WorkflowResult(
            self.workflow.name,
            recorded(self.workflow, self.inputs),
            self.pictures,
            rounded(self.measured),
            self.notes,
            [one.as_dict() for one in self._checks],
            {
                "generated": self._generated,
                "denoising_steps": self._steps,
                "seconds": round(time.monotonic() - started, 2),
            },
            self.shown,
            self.files,
        )


def run(
    workflow: Workflow,
    inputs: Any,
    *,
    engine: Engine | None,
    progress: bool,
    on_progress: Callable[[str, int, int], object] | None,
) -> WorkflowResult:
    """Check the references, then do the steps. Raises an ImagePromptError."""
    started = time.monotonic()
    with Bars(progress and on_progress is None) as bars:
        job = Job(workflow, inputs, engine, on_progress or bars.update)
        job.check_references()
        workflow.steps(inputs, job)
    return job.result(started)


# ── references ──────────────────────────────────────────────────────────────────────────────────


def _check_references(job: Job) -> Iterator[PictureQuality]:
    """The quality of each reference. Notes its problems.

    Raises PictureError for one that cannot be read, OptionError where one stands in two places.
    """
    from imageprompt.encoding.images.open_image import open_picture
    from imageprompt.evaluation.image_quality.picture import check

    seen: dict[str, Any] = {}
    for name in job.workflow.references:
        for source in as_list(getattr(job.inputs, name)):
            quality = check(source)
            for problem, (advice, _) in quality.problems().items():
                if not (job.on_bundled_base and problem in _ABOUT_SIZE):
                    job.notes.append(f"{name} {quality.picture}: {advice}")
            small = open_picture(source).resize((_THUMBNAIL, _THUMBNAIL))
            pixels = np.asarray(small, np.float64)
            for other, known in seen.items():
                if other != name and np.abs(pixels - known).mean() < ALIKE:
                    raise OptionError(
                        f"{name} and {other}",
                        reason="are the same picture, where two are needed",
                        hint=f"Give another picture as --{name.replace('_', '-')}.",
                    )
            seen.setdefault(name, pixels)
            yield quality


# ── records ─────────────────────────────────────────────────────────────────────────────────────


def recorded(workflow: Workflow, inputs: Any) -> dict[str, Any]:
    """The inputs as JSON: pictures by path and hash, models by name."""
    record: dict[str, Any] = {}
    for one in workflow.fields():
        value = getattr(inputs, one.name)
        if value is None:
            continue
        if one.option.group == PICTURES:
            found = [_asset(source) for source in as_list(value)]
            record[one.name] = found if one.option.repeat else found[0]
        elif isinstance(value, str | int | float | bool | list | tuple | Mapping):
            record[one.name] = list(value) if isinstance(value, tuple) else value
        else:
            record[one.name] = str(value) if isinstance(value, Path) else type(value).__name__
    return record


def _asset(source: Any) -> dict[str, Any]:
    from imageprompt.loading import record_of

    kept = record_of(source)
    return {"name": kept.name, "hash": kept.hash}


def rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    """Figures with four decimals, as JSON takes them: what is not finite is None."""
    return {name: _rounded(value) for name, value in values.items()}


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return rounded(value)
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    if isinstance(value, float | np.floating):
        return round(float(value), 4) if math.isfinite(value) else None
    if isinstance(value, np.integer | np.bool_):
        return value.item()
    return value
