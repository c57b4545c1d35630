"""Runs workflows on the engine of the worker: pictures, then a report of what they measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imageprompt.core.console import json_text
from imageprompt.core.errors import PictureError
from imageprompt.loading.recipe import picture_bytes
from imageprompt.serve import sources, workflow_body
from imageprompt.serve.settings import Limits
from imageprompt.serve.worker.protocol import Message
from imageprompt.serve.worker.served_models import ServedModels, read_upload

if TYPE_CHECKING:
    from imageprompt.workflows.result import WorkflowResult

MOST_NOTES = 200


class Cancelled(Exception):
    """The client wants it no longer."""


def run(
    models: ServedModels,
    limits: Limits,
    job: Mapping[str, Any],
    *,
    cancelled: Callable[[], bool],
    tell: Callable[[Message], None],
) -> None:
    """Make the pictures of a workflow. Raises Cancelled, ApiError, an ImagePromptError."""
    request, folder = job["request"], Path(job["folder"])
    workflow = workflow_body.find(request["workflow"])
    known = {one.name for one in workflow.fields()}
    given = dict(request["inputs"])
    for name, value in request["pictures"].items():
        several = isinstance(value, list)
        found = [_picture(one, folder, limits) for one in (value if several else [value])]
        given[name] = found if several else found[0]
    if "library" in known:
        given["library"] = str(models.library.folder)
    workflow_body.check_inputs(workflow, given, limits)

    def progress(_: str, done: int, total: int) -> None:
        if cancelled():
            raise Cancelled
        told = {"job": job["id"], "step": done, "total": total, "index": 0, "pictures": 1}
        tell(Message("step", told))

    result = workflow(engine=models.engine, on_progress=progress, **given)
    report = _report(result, request)
    for index, one in enumerate(result.pictures):
        recipe = None if one.recipe is None else models.public_recipe(one.recipe)
        seed = given.get("seed", 1) if recipe is None else recipe.seed + recipe.index
        told = {"job": job["id"], "index": index, "seed": seed}
        told |= {"width": one.image.width, "height": one.image.height}
        kept = {"name": workflow.name, "label": one.label, "measured": dict(one.measured)}
        png = picture_bytes(one.image, recipe, one.tokens, workflow=json_text(kept))
        tell(Message("image", told, png))
    tell(Message("report", {"job": job["id"]}, json_text(report).encode()))


def _picture(source: str, folder: Path, limits: Limits) -> bytes:
    """Raises PictureError for one with more pixels than a picture that is made may have."""
    from imageprompt.encoding.images.open_image import picture_size

    content = read_upload(sources.upload_of(source), folder)
    width, height = picture_size(content)
    if width * height > limits.pixels:
        raise PictureError(
            f"a picture of {width}x{height} px",
            reason=f"more than {limits.pixels} pixels, as many as a workflow reads",
            hint="Send a smaller one.",
        )
    return content


def _report(result: WorkflowResult, request: Mapping[str, Any]) -> dict[str, Any]:
    """As `workflow run --json` prints it, without what the server knows of its own machine."""
    found = result.as_dict()
    pictures = [
        {"index": index, "label": one["label"], "measured": one["measured"]}
        for index, one in enumerate(found["pictures"])
    ]
    return {
        "workflow": result.workflow,
        "pictures": pictures,
        "measured": found["measured"],
        "inputs": {**request["inputs"], **request["pictures"]},
        "notes": result.notes[:MOST_NOTES],
        "checks": [{**one, "picture": None} for one in found["checks"]],
        "cost": found["cost"],
    }
