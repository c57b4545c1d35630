"""restyle: the content of one picture in the style of another, as a curve over the strength."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np

from imageprompt.core import bundled
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
        Literal["img2img", "layout", "pair"] | None,
        control(
            "img2img: start from the content picture; layout: start from noise, the content "
            "picture is a reference alone; pair: so too, by a pair of adapters for content and "
            "style (default pair where the base has one, else img2img)"
        ),
    ] = None
    strengths: Annotated[
        Any,
        control(
            "how much of the content picture changes, 0..1: a picture for each (default "
            "0.6,0.8,0.95); with the other methods, how strong the content is, 0..2 (default "
            "0.6,0.8,1 with a pair, 0.8,1.2,1.6 by layout)",
            metavar="A,B",
            parse=values.parse_numbers,
            json=NUMBERS,
        ),
    ] = None
    scale: Annotated[
        float | None,
        control(
            "strength of the style, 0..2 (default 1 with a pair, else 1.3)",
            metavar="S",
            ge=0,
            le=2,
        ),
    ] = None
    content_scale: Annotated[
        float,
        control(
            "strength of the content picture as a reference beside img2img, 0..2 (default 1.5)",
            metavar="S",
            ge=0,
            le=2,
        ),
    ] = 1.5


STRENGTHS: Mapping[str, Sequence[float]] = {
    "img2img": (0.6, 0.8, 0.95),
    "layout": (0.8, 1.2, 1.6),
    "pair": (0.6, 0.8, 1.0),
}


def steps(inputs: Inputs, job: Job) -> None:
    method = inputs.method or _own_method(inputs, job)
    chosen = STRENGTHS[method] if inputs.strengths is None else inputs.strengths
    strengths = numbers("strengths", chosen, highest=1 if method == "img2img" else 2)
    scale = (1.0 if method == "pair" else 1.3) if inputs.scale is None else inputs.scale
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
            scale=scale,
            **_arguments(method, inputs, framed, style, strength),
        )
        rows = []
        for index, image in enumerate(result):
            rows.append(_figures(job, image, framed, style))
            label = f"strength {strength:g}, seed {inputs.seed + index}"
            job.add(label, image, result, index, **rows[-1])
        means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        curve.append({"strength": strength, **means})
    job.measured |= {"method": method, "curve": curve}
    job.measured["baseline"] = _figures(job, baseline, framed, style)
    job.measured["content_picture"] = _figures(job, framed, framed, style)


def _own_method(inputs: Inputs, job: Job) -> str:
    """pair where the base has one, as the bundled stacks do, and no other adapter is asked for."""
    folder = job.engine.loaded.folder
    own = folder is not None and (folder / "adapters" / f"{bundled.PAIR}.safetensors").is_file()
    return "pair" if own and inputs.adapter is None else "img2img"


def _arguments(
    method: str, inputs: Inputs, content: Image, style: Image, strength: float
) -> dict[str, Any]:
    """The arguments of generate that differ between the methods."""
    from imageprompt.generation.reference import Reference

    if method == "pair":
        return {"style": style, "also": [Reference(content=content, scale=strength)]}
    scale = inputs.content_scale if method == "img2img" else strength
    arguments: dict[str, Any] = {"reference": style, "preset": "style"}
    if scale:
        # outlines are decided early; later steps leave the textures to the style picture
        layout = Reference(reference=content, preset="layout", scale=scale, schedule=EARLY)
        arguments["also"] = [layout]
    if method == "img2img":
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
        "method": "pair, layout or img2img",
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
