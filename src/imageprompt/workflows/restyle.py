"""restyle: the content of one picture in the style of another, as a curve over the strength."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np

from imageprompt.generation import option_values as values
from imageprompt.generation.option_values import NUMBERS
from imageprompt.workflows import _judged, _pixels
from imageprompt.workflows.contract import Workflow
from imageprompt.workflows.inputs import GenerationInputs, control, numbers, picture

if TYPE_CHECKING:
    from PIL.Image import Image

    from imageprompt.workflows.job import Job

STYLE = ("colour", "texture", "background")
CONTENT = ("shape",)
"""The judge's attributes that are style, and those that are content."""

EARLY = "0-0.7"
"""The part of the steps in which the content picture is a reference."""


@dataclass(frozen=True, kw_only=True)
class Inputs(GenerationInputs):
    """A picture of what is to be seen, and one of how it is to look."""

    content: Annotated[Any, picture("what is to be seen")]
    style: Annotated[Any, picture("how it is to look")]
    prompt: Annotated[str, control("text beside them (default: none)", metavar="TEXT")] = ""
    method: Annotated[
        Literal["img2img", "layout", "pair"],
        control(
            "img2img: start from the content picture; layout: start from noise, the content "
            "picture is a reference alone; pair: so too, by a pair of adapters for content and "
            "style (default img2img)"
        ),
    ] = "img2img"
    strengths: Annotated[
        Any,
        control(
            "how much of the content picture changes, 0..1: a picture for each (default "
            "0.6,0.8,0.95); with the other methods, how strong the content is, 0..2 (default "
            "0.8,1.2,1.6)",
            metavar="A,B",
            parse=values.parse_numbers,
            json=NUMBERS,
        ),
    ] = None
    scale: Annotated[
        float, control("strength of the style, 0..2 (default 1.3)", metavar="S", ge=0, le=2)
    ] = 1.3
    content_scale: Annotated[
        float,
        control(
            "strength of the content picture as a reference beside img2img, 0..2 (default 1.5)",
            metavar="S",
            ge=0,
            le=2,
        ),
    ] = 1.5


def steps(inputs: Inputs, job: Job) -> None:
    from_noise = inputs.method != "img2img"
    chosen = inputs.strengths or ((0.8, 1.2, 1.6) if from_noise else (0.6, 0.8, 0.95))
    strengths = numbers("strengths", chosen, highest=2 if from_noise else 1)
    from imageprompt.encoding.images.open_image import open_picture

    content, style = open_picture(inputs.content), open_picture(inputs.style)
    job.expect(len(strengths) * inputs.num_images)
    size = _pixels.own_size(content, inputs.size, job.pipe)
    framed = _pixels.resized(content, size)
    baseline = _pixels.matched_colours(framed, style)
    job.show("content", framed)
    job.show("style", style)
    job.show("baseline: colours matched", baseline)
    curve = []
    for strength in strengths:
        result = job.generate(
            inputs.prompt,
            size=size,
            num_images=inputs.num_images,
            scale=inputs.scale,
            **_arguments(inputs, framed, style, strength),
        )
        rows = []
        for index, image in enumerate(result):
            rows.append(_figures(job, image, framed, style))
            label = f"strength {strength:g}, seed {inputs.seed + index}"
            job.add(label, image, result, index, **rows[-1])
        means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        curve.append({"strength": strength, **means})
    job.measured["curve"] = curve
    job.measured["baseline"] = _figures(job, baseline, framed, style)
    job.measured["content_picture"] = _figures(job, framed, framed, style)


def _arguments(inputs: Inputs, content: Image, style: Image, strength: float) -> dict[str, Any]:
    """The arguments of generate that differ between the methods."""
    from imageprompt.generation.reference import Reference

    if inputs.method == "pair":
        return {"style": style, "also": [Reference(content=content, scale=strength)]}
    scale = inputs.content_scale if inputs.method == "img2img" else strength
    arguments: dict[str, Any] = {"reference": style, "preset": "style"}
    if scale:
        # outlines are decided early; later steps leave the textures to the style picture
        layout = Reference(reference=content, preset="layout", scale=scale, schedule=EARLY)
        arguments["also"] = [layout]
    if inputs.method == "img2img":
        arguments |= {"init_image": content, "strength": strength}
    return arguments


def _figures(job: Job, image: Image, content: Image, style: Image) -> dict[str, float]:
    figures = {
        "style_distance": _pixels.colour_distance(image, style),
        "content_distance": _pixels.layout_distance(image, content),
    }
    if job.on_bundled_base:
        figures["style"] = _judged.kept(job, [image], style, STYLE)[0]
        figures["content"] = _judged.kept(job, [image], content, CONTENT)[0]
    return figures


WORKFLOW = Workflow(
    name="restyle",
    summary="the content of one picture in the style of another, over a range of strengths",
    inputs=Inputs,
    steps=steps,
    measures={
        "curve": "for each strength the means of: style_distance, of the Lab colours from the "
        "style picture's (2.3 is just visible); content_distance, 1 - correlation of the edges "
        "with the content picture's; on bundled stacks style (share of colour, texture and "
        "background of the style picture) and content (is it the content's shape?)",
        "baseline": "the same for the content picture with the mean and covariance of the style's "
        "Lab colours: no model is needed for that much",
        "content_picture": "the same for the content picture itself",
    },
    references=("content", "style"),
)
