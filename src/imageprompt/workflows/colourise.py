"""colourise: colours for a grey picture, from another picture; its lightness stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from imageprompt.workflows import _judged, _pixels
from imageprompt.workflows.contract import Workflow
from imageprompt.workflows.inputs import GenerationInputs, control, picture

if TYPE_CHECKING:
    from PIL.Image import Image

    from imageprompt.workflows.job import Job


@dataclass(frozen=True, kw_only=True)
class Inputs(GenerationInputs):
    """A grey picture, and one that has its colours."""

    picture: Annotated[Any, picture("the grey picture; of a coloured one, only the lightness")]
    colours: Annotated[Any, picture("a picture with the colours, best of the same subject")]
    prompt: Annotated[
        str, control("text beside them, such as the colours in words", metavar="TEXT")
    ] = ""
    strength: Annotated[
        float,
        control(
            "how much of the grey picture is made anew before its lightness is put back, 0..1 "
            "(default 0.9)",
            metavar="S",
            ge=0.05,
            le=1,
        ),
    ] = 0.9
    scale: Annotated[
        float, control("strength of the colours, 0..2 (default 1)", metavar="S", ge=0, le=2)
    ] = 1.0
    content_scale: Annotated[
        float,
        control(
            "strength of the grey picture as a reference for the layout, 0..2 (default 1)",
            metavar="S",
            ge=0,
            le=2,
        ),
    ] = 1.0
    truth: Annotated[
        Any, picture("the true colours, if they are known: ΔE is measured against them")
    ] = None


def steps(inputs: Inputs, job: Job) -> None:
    from imageprompt.encoding.images.open_image import open_picture
    from imageprompt.generation.reference import Reference

    given, colours = open_picture(inputs.picture), open_picture(inputs.colours)
    truth = None if inputs.truth is None else _pixels.same_size(inputs.truth, given, "--truth")
    job.expect(inputs.num_images)
    size = _pixels.own_size(given, inputs.size, job.pipe)
    lightness = _pixels.lightness(given)
    grey = _pixels.with_lightness(lightness, np.zeros((*lightness.shape, 2)))
    tint = _pixels.with_lightness(lightness, _tint(colours, lightness))
    framed = _pixels.resized(grey, size)
    job.show("grey", grey)
    job.show("colours", colours)
    job.show("baseline: one tint", tint)
    also = []
    if inputs.content_scale:
        also = [Reference(reference=framed, preset="layout", scale=inputs.content_scale)]
    result = job.generate(
        inputs.prompt,
        colours,
        preset="style",
        scale=inputs.scale,
        also=also,
        init_image=framed,
        strength=inputs.strength,
        size=size,
        num_images=inputs.num_images,
    )
    cell = _pixels.cell_of(job.pipe)
    for index, made in enumerate(result):
        chroma = _pixels.fitted_chroma(made, grey, cell)
        image = _pixels.with_lightness(lightness, chroma)
        figures = _figures(job, image, lightness, colours, truth)
        job.add(f"seed {inputs.seed + index}", image, result, index, **figures)
    job.summarise()
    job.measured["baseline"] = _figures(job, tint, lightness, colours, truth)
    job.measured["grey"] = _figures(job, grey, lightness, colours, truth)


def _tint(colours: Image, lightness: Any) -> Any:
    """The mean a and b of the colours, everywhere."""
    return np.broadcast_to(_pixels.mean_chroma(colours), (*lightness.shape, 2))


def _figures(
    job: Job, image: Image, lightness: Any, colours: Image, truth: Image | None
) -> dict[str, float]:
    figures = {
        "lightness_error": float(np.abs(_pixels.lightness(image) - lightness).max()),
        "colour_distance": _pixels.chroma_distance(image, colours),
        "colourfulness": _pixels.colourfulness(image),
    }
    if truth is not None:
        from imageprompt.evaluation.metrics.delta_e import delta_e

        figures["delta_e"] = delta_e(_pixels.pixels(image), _pixels.pixels(truth))
    if job.on_bundled_base:
        names = ("colour", "background")
        figures["colours_of_reference"] = _judged.kept(job, [image], colours, names)[0]
    return figures


WORKFLOW = Workflow(
    name="colourise",
    summary="colours for a grey picture from another picture; its lightness stays exactly",
    inputs=Inputs,
    steps=steps,
    measures={
        "lightness_error": "largest difference of L from the grey picture's, 0..100: below 0.5",
        "colour_distance": "distance of a and b from those of the colours as sets, in Lab",
        "colourfulness": "spread of the opponent colours (Hasler and Süsstrunk); 0 is grey",
        "delta_e": "mean ΔE 2000 to --truth, if it is given; 1 is just visible",
        "colours_of_reference": "are object and background coloured as in the reference? bundled "
        "stacks only",
        "baseline": "the same for one tint everywhere, the mean of the colours: it needs no model, "
        "and figures without it flatter",
        "grey": "the same for the grey picture",
    },
    references=("picture", "colours"),
)
