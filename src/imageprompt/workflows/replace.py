"""replace: another object in a masked part of a picture; the rest stays as it is, to the bit.

The new object is cut out and pasted where the old one was, over a ground filled from around it;
inpainting starts from that picture and has it as its reference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from imageprompt.core.errors import OptionError, PictureError
from imageprompt.workflows import _judged, _pixels
from imageprompt.workflows.contract import Workflow
from imageprompt.workflows.inputs import GenerationInputs, control, picture

if TYPE_CHECKING:
    from PIL.Image import Image

    from imageprompt.encoding.masks import Weights
    from imageprompt.workflows.job import Job

_FILLS = 0.9
"""Share of the mask's box that the new object takes."""


@dataclass(frozen=True, kw_only=True)
class Inputs(GenerationInputs):
    """A picture, the part of it that changes, and what is to be there."""

    picture: Annotated[Any, picture("the picture in which an object is replaced")]
    mask: Annotated[Any, picture("white where the old object is")]
    object: Annotated[Any, picture("the new object")]
    object_mask: Annotated[
        Any,
        picture(
            "white where the new object is in its picture (default: what stands before its plain "
            "background, else the whole picture counts)"
        ),
    ] = None
    prompt: Annotated[str, control("the result in words (default: none)", metavar="TEXT")] = ""
    scale: Annotated[
        float, control("strength of the new object, 0..2 (default 1)", metavar="S", ge=0, le=2)
    ] = 1.0
    strength: Annotated[
        float,
        control(
            "how much of the pasted object is made anew, 0..1: less keeps its shape, more fits it "
            "in (default 0.6; from noise where the object cannot be cut out)",
            metavar="S",
            ge=0.05,
            le=1,
        ),
    ] = 0.6
    grow: Annotated[
        int | None,
        control(
            "px by which the mask grows; less than a latent lets the old object show through "
            "(default: one latent, mostly 8)",
            metavar="PX",
            ge=0,
            le=512,
        ),
    ] = None


def steps(inputs: Inputs, job: Job) -> None:
    from imageprompt.encoding.images.open_image import open_picture

    old, new = open_picture(inputs.picture), open_picture(inputs.object)
    mask = _pixels.mask_of(inputs.mask, old, "--mask")
    object_mask = _object_mask(inputs, job, new)
    job.expect(inputs.num_images)
    size = _pixels.own_size(old, inputs.size, job.pipe)
    cell = _pixels.cell_of(job.pipe)
    framed = _pixels.resized(old, size)
    area = _pixels.resized_mask(mask, size)
    _warn_of_small(job, area, cell)
    area = (_pixels.grown(area, cell if inputs.grow is None else inputs.grow) >= 0.5).astype("f4")
    _pixels.check_mask(area, "the mask, grown by a latent,")
    job.show("picture", old)
    job.show("mask", _pixels.picture_of(np.repeat(255 * mask[..., None], 3, 2)))
    job.show("new object", new)
    reference, start, strength = new, framed, 1.0
    if object_mask is not None:
        reference = start = _collage(framed, area, new, object_mask)
        strength = inputs.strength
        job.show("pasted", start)
    result = job.generate(
        inputs.prompt,
        reference,
        scale=inputs.scale,
        mask=area,
        init_image=start,
        inpaint_mask=area,
        strength=strength,
        size=size,
        num_images=inputs.num_images,
    )
    # outside the grown mask, the picture's own pixels in its own size
    outside = 1 - (_pixels.resized_mask(area, old.size) > 0).astype("f4")
    for index, made in enumerate(result):
        image = _pixels.pasted(old, _pixels.resized(made, old.size), outside, feather=0)
        figures = _figures(job, image, old, new, outside)
        job.add(f"seed {inputs.seed + index}", image, result, index, **figures)
    job.summarise()


def _object_mask(inputs: Inputs, job: Job, new: Image) -> Weights | None:
    """Where the new object is in its picture; None if that cannot be told.

    Raises OptionError, PictureError.
    """
    if inputs.object_mask is not None:
        return _pixels.mask_of(inputs.object_mask, new, "--object-mask")
    try:
        mask = _pixels.object_on_plain_background(new, cut_holes=True)
        _pixels.check_mask(mask, "the new object")
    except (OptionError, PictureError):
        job.notes.append(
            "the new object's background is not plain: what surrounds it counts as well; give "
            "--object-mask"
        )
        return None
    return mask


def _collage(framed: Image, area: Weights, new: Image, object_mask: Weights) -> Image:
    """The new object where the old one was, before what surrounded the old one.

    It is the reference, so that its tokens speak of this background and not of the object's own,
    and what the inpainting starts from.
    """
    from PIL import Image as Pillow

    ground = _pixels.filled(framed, area)
    left, top, right, bottom = _pixels.box_of(area)
    box = _pixels.box_of(object_mask)
    part, inner = new.crop(box), object_mask[box[1] : box[3], box[0] : box[2]]
    factor = _FILLS * min((right - left) / part.width, (bottom - top) / part.height)
    size = (max(1, round(part.width * factor)), max(1, round(part.height * factor)))
    weights = _pixels.resized_mask(inner, size)
    place = ((left + right - size[0]) // 2, (top + bottom - size[1]) // 2)
    stencil = Pillow.fromarray((255 * weights).astype(np.uint8))
    ground.paste(_pixels.resized(part, size), place, stencil)
    return ground


def _warn_of_small(job: Job, area: Weights, cell: int) -> None:
    if not (area >= 0.5).any():
        job.notes.append("the mask is smaller than a pixel of the base's pictures: nothing changes")
        return
    left, top, right, bottom = _pixels.box_of(area)
    if min(right - left, bottom - top) < cell:
        job.notes.append(
            f"the mask is narrower than a latent of {cell} px: expect a patch, not an object"
        )


def _figures(job: Job, image: Image, old: Image, new: Image, outside: Weights) -> dict[str, Any]:
    inside = 1 - outside
    figures: dict[str, Any] = {
        "outside_difference": _pixels.largest_difference(image, old, outside),
        "seam": _pixels.seam(image, inside),
        "seam_before": _pixels.seam(old, inside),
        "changed": float((inside >= 0.5).mean()),
    }
    if job.on_bundled_base:
        figures["object_of_reference"] = _judged.kept(job, [image], new, _judged.OBJECT)[0]
        figures["scene_kept"] = _judged.kept(job, [image], old, _judged.SCENE)[0]
        figures["text_obeyed"] = _judged.obeyed(job, [image], job.inputs.prompt)[0]
    return figures


WORKFLOW = Workflow(
    name="replace",
    summary="another object in a masked part of a picture; the rest untouched, to the bit",
    inputs=Inputs,
    steps=steps,
    measures={
        "outside_difference": "largest difference of the pixels outside, 0..255: always 0",
        "seam": "colour jump across the mask's edge, as a multiple of that beside it; 1 is none",
        "seam_before": "the same before",
        "changed": "share of the picture that is made anew",
        "object_of_reference": "share of shape, colour and texture that the judge reads as in the "
        "new object's picture; bundled stacks only",
        "scene_kept": "share of background and style that the judge reads as before; bundled "
        "stacks only",
        "text_obeyed": "share of the prompt's words that the judge reads; bundled stacks only",
    },
    references=("picture", "object"),
)
