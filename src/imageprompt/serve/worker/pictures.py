"""Makes the pictures of several jobs at once, and tells what happens to each."""

from __future__ import annotations

import io
import logging
import re
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imageprompt.core.errors import ImagePromptError, OptionError
from imageprompt.generation.result import GenerationResult
from imageprompt.generation.run import Progress
from imageprompt.loading.recipe import picture_bytes
from imageprompt.serve.errors import ApiError, Problem, problem_of
from imageprompt.serve.settings import Limits
from imageprompt.serve.tracing import note
from imageprompt.serve.worker.protocol import Message
from imageprompt.serve.worker.served_models import ServedModels

if TYPE_CHECKING:
    from PIL.Image import Image

    from imageprompt.generation.request import Request

PREVIEW_SECONDS = 0.3
"""At least so long between two previews of a job."""
PREVIEW_SIDE = 256  # pixels
MAX_PREVIEWS = 4  # pictures of one job
_NO_MEMORY = re.compile("out of memory|can(no|')t allocate memory|bad_alloc", re.IGNORECASE)

log = logging.getLogger(__name__)


@dataclass
class WorkerJob:
    """A job of the batch that runs."""

    id: str
    request: Request
    trace: str | None = None
    made: int = 0
    ended: bool = False
    previewed: dict[int, float] = field(default_factory=dict)


@dataclass
class Signals:
    """What the server says while a batch runs; written by another thread."""

    cancelled: set[str] = field(default_factory=set)
    watched: set[str] = field(default_factory=set)
    """Jobs whose previews somebody looks at."""


class PictureMaker:
    """Runs batches on the engine; `tell` sends a message to the server."""

    def __init__(
        self,
        models: ServedModels,
        batch_size: int,
        tell: Callable[[Message], None],
        limits: Limits | None = None,
    ) -> None:
        self._models, self._batch_size, self._tell = models, batch_size, tell
        self._limits = limits or Limits()
        self.signals = Signals()

    def run(self, described: Sequence[Mapping[str, Any]]) -> None:
        """Make the pictures of jobs; each ends with a message of its own, whatever happens."""
        jobs = []
        for one in described:
            if one["id"] in self.signals.cancelled:
                self._tell(Message("ended", {"job": one["id"], "state": "cancelled"}))
                continue
            if "workflow" in one["request"]:
                self._run_workflow(one)
                continue
            try:
                request = self._models.request(one["request"], Path(one["folder"]))
                jobs.append(WorkerJob(one["id"], request, one.get("trace")))
            except (ImagePromptError, ApiError) as error:
                self._fail(one["id"], _problem(error, one["id"], one.get("trace")))
        self._make(jobs)
        for one in described:
            self.signals.cancelled.discard(one["id"])
            self.signals.watched.discard(one["id"])

    def _run_workflow(self, described: Mapping[str, Any]) -> None:
        """Workflows run alone, one picture after another."""
        from imageprompt.serve.worker import workflows

        job = described["id"]
        try:
            workflows.run(
                self._models,
                self._limits,
                described,
                cancelled=lambda: job in self.signals.cancelled,
                tell=self._tell,
            )
        except workflows.Cancelled:
            self._tell(Message("ended", {"job": job, "state": "cancelled"}))
        except Exception as error:
            self._fail(job, _problem(error, job, described.get("trace")))
            if _broken_device(error):
                raise
        else:
            self._tell(Message("ended", {"job": job, "state": "done"}))

    def _make(self, jobs: Sequence[WorkerJob]) -> None:
        if not jobs:
            return
        try:
            self._generate(jobs)
        except Exception as error:
            left = [job for job in jobs if not job.ended]
            if len(jobs) > 1:  # one spoils it for all: each alone
                for job in left:
                    self._make([job])
                return
            for job in left:
                self._end(job, "failed", _problem(error, job.id, job.trace))
            if _broken_device(error):
                raise

    def _generate(self, jobs: Sequence[WorkerJob]) -> None:
        def step(progress: Progress) -> None:
            self._step(jobs[progress.index], progress)

        def image(result: GenerationResult) -> None:
            self._image(jobs[result.request], result)

        results = self._models.engine.generate_many(
            [job.request for job in jobs],
            batch_size=self._batch_size,
            on_step=step if self._models.reports_steps else None,
            on_image=image,
            progress=False,
        )
        for job, result in zip(jobs, results, strict=True):
            self._end(job, "cancelled" if result.cancelled else "done")

    def _step(self, job: WorkerJob, progress: Progress) -> None:
        if job.id in self.signals.cancelled:
            progress.cancel()
            self._end(job, "cancelled")
            return
        told = {
            "job": job.id,
            "step": progress.step,
            "total": progress.total,
            "index": progress.picture,
            "pictures": len(progress.pictures),
        }
        self._tell(Message("step", told))
        if job.id in self.signals.watched:
            self._preview(job, progress)

    def _preview(self, job: WorkerJob, progress: Progress) -> None:
        now, last = time.monotonic(), job.previewed.get(progress.picture, 0.0)
        if now - last < PREVIEW_SECONDS or progress.step == progress.total:
            return
        job.previewed[progress.picture] = now
        try:
            pictures = progress.preview()[:MAX_PREVIEWS]
        except ImagePromptError:  # this pipeline has none
            self.signals.watched.discard(job.id)
            return
        for index, picture in zip(progress.pictures, pictures, strict=False):
            told = {"job": job.id, "index": index, "step": progress.step}
            self._tell(Message("preview", told, _jpeg(picture)))

    def _image(self, job: WorkerJob, result: GenerationResult) -> None:
        (picture,), recipe = result.images, self._models.public_recipe(result.recipe)
        tokens = [prompt.to().as_bytes() for prompt in result.image_prompts]
        told = {
            "job": job.id,
            "index": recipe.index,
            "width": recipe.width,
            "height": recipe.height,
            "seed": recipe.seed + recipe.index,
        }
        job.made += 1
        self._tell(Message("image", told, picture_bytes(picture, recipe, tokens)))

    def _end(self, job: WorkerJob, state: str, problem: Problem | None = None) -> None:
        if job.ended:
            return
        job.ended = True
        if problem is not None:
            self._fail(job.id, problem)
        else:
            self._tell(Message("ended", {"job": job.id, "state": state}))

    def _fail(self, job: str, problem: Problem) -> None:
        told = {"job": job, "state": "failed", "error": problem.as_dict()}
        self._tell(Message("ended", told))


def _jpeg(picture: Image) -> bytes:
    stream = io.BytesIO()
    picture.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    picture.convert("RGB").save(stream, format="JPEG", quality=80)
    return stream.getvalue()


def _problem(error: Exception, job: str, trace: str | None) -> Problem:
    """An error of a job in the words of the API; what it does not expect goes to the log."""
    if isinstance(error, ApiError):
        return error.problem
    memory = isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)) is not None
    if memory or (isinstance(error, OptionError) and "enough memory" in error.reason):
        return Problem(
            "out_of_memory", "the device has not enough memory", "size", "Use a smaller size."
        )
    if isinstance(error, ImagePromptError):
        plain = type(error)(
            re.sub(r"^request \d+: ", "", error.what), reason=error.reason, hint=error.hint
        )
        return problem_of(plain)
    told = "".join(traceback.format_exception(error))
    log.error("job %s failed%s: %s", job, note(trace), told)
    return Problem("internal", "an error of the server", None, "The server's log has its details.")


def _broken_device(error: BaseException) -> bool:
    """Errors of a kernel leave a CUDA context that answers every call with the same error."""
    return "CUDA error" in str(error)
