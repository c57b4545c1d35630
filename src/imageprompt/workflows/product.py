"""product: a product in a new scene, in the style of another picture, with words for the scene.

Kept: the background is inpainted around the product, whose latents are pasted back at each step;
then its own pixels are pasted over the result. Rendered: the product is drawn anew from its picture
inside its outline, and the other picture gives everything outside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np

from imageprompt.core.errors import OptionError
from imageprompt.workflows import _judged, _pixels
from imageprompt.workflows.contract import Workflow
from imageprompt.workflows.inputs import GenerationInputs, control, picture

if TYPE_CHECKING:
    from PIL.Image import Image

    from imageprompt.encoding.masks import Weights
    from imageprompt.workflows.job import Job


@dataclass(frozen=True, kw_only=True)
class Inputs(GenerationInputs):
    """A product, a picture in whose style the scene is to be, and words for the scene."""

    product: Annotated[Any, picture("the product, best before a plain background")]
    style: Annotated[Any, picture("the scene is to look like this one")]
    mask: Annotated[
        Any,
        picture("white where the product is (default: what stands before its plain background)"),
    ] = None
    prompt: Annotated[str, control("the scene in words (default: none)", metavar="TEXT")] = ""
    method: Annotated[
        Literal["keep", "render"],
        control(
            "keep: the product's own pixels, to the bit; render: drawn anew from its picture, so "
            "that light and edges fit (default keep)"
        ),
    ] = "keep"
    width: Annotated[
        int | None,
        control(
            "px that the product is to take from left to right (default: as in its picture)",
            metavar="PX",
            ge=8,
        ),
    ] = None
    scale: Annotated[
        float,
        control(
            "strength of the style picture, 0..2 (default 0.8: more leaves the text less room)",
            metavar="S",
            ge=0,
            le=2,
        ),
    ] = 0.8
    product_scale: Annotated[
        float,
        control(
            "strength of the product's picture inside its outline, 0..2 (default 1)",
            metavar="S",
            ge=0,
            le=2,
        ),
    ] = 1.0
    tolerance: Annotated[
        float,
        control(
            "ΔE from the background's colour up to which a pixel is background (default 10)",
            metavar="DE",
            ge=1,
            le=60,
        ),
    ] = _pixels.TOLERANCE
    holes: Annotated[
        Literal["keep", "cut"],
        control(
            "cut: what the product encloses in its background's colour is background too, as in "
            "the handle of a cup (default keep)"
        ),
    ] = "keep"
    feather: Annotated[
        int, control("px over which a kept product's edge fades (default 1)", metavar="PX", ge=0)
    ] = 1


def steps(inputs: Inputs, job: Job) -> None:
    from imageprompt.encoding.images.open_image import open_picture

    product, style = open_picture(inputs.product), open_picture(inputs.style)
    mask = _mask(inputs, product)
    job.expect(inputs.num_images)
    size = _pixels.own_size(product, inputs.size, job.pipe)
    framed, mask = _placed(product, mask, size, inputs.width)
    cell = _pixels.cell_of(job.pipe)
    if framed.size != product.size or inputs.width is not None:
        job.notes.append(f"the product is scaled: the pictures have {size[0]}x{size[1]} pixels")
    job.show("product", framed)
    job.show("its mask", _pixels.picture_of(np.repeat(255 * mask[..., None], 3, 2)))
    job.show("style", style)
    arguments: dict[str, Any] = {"size": size, "num_images": inputs.num_images}
    if inputs.method == "keep":
        arguments |= {
            "init_image": framed,
            # cells that hold an edge are made anew, so that no old background stays in them
            "inpaint_mask": 1 - _pixels.grown(mask, -(cell // 2)),
            "strength": 1.0,
        }
    from imageprompt.generation.reference import Reference

    # an outline that is drawn anew needs more room than one that is pasted over
    area = _pixels.grown(mask, cell // 4 if inputs.method == "keep" else cell // 2)
    result = job.generate(
        inputs.prompt,
        style,
        preset="style",
        scale=inputs.scale,
        mask=1 - area,
        also=[
            Reference(reference=framed, reference_mask=mask, scale=inputs.product_scale, mask=area)
        ],
        **arguments,
    )
    for index, made in enumerate(result):
        image = made
        if inputs.method == "keep":
            clean = _pixels.without_ghost(made, framed, mask, cell)
            image = _pixels.pasted(framed, clean, mask, feather=inputs.feather)
        figures = _figures(job, image, framed, style, mask)
        job.add(f"seed {inputs.seed + index}", image, result, index, **figures)
    job.summarise()


def _mask(inputs: Inputs, product: Image) -> Weights:
    """Raises OptionError, PictureError."""
    if inputs.mask is not None:
        return _pixels.mask_of(inputs.mask, product, "--mask")
    mask = _pixels.object_on_plain_background(
        product, tolerance=inputs.tolerance, cut_holes=inputs.holes == "cut"
    )
    _pixels.check_mask(mask, "the product's mask")
    return mask


def _placed(
    product: Image, mask: Weights, size: tuple[int, int], width: int | None
) -> tuple[Image, Weights]:
    """Picture and mask in a frame of `size`: the whole picture, or the product `width` px wide in
    the middle. Raises OptionError for a product larger than the frame."""
    from PIL import Image as Pillow

    if width is None:
        return _pixels.resized(product, size), _pixels.resized_mask(mask, size)
    left, top, right, bottom = _pixels.box_of(mask)
    height = round(width * (bottom - top) / (right - left))
    if width >= size[0] or height >= size[1]:
        raise OptionError(
            f"a product of {width}x{height} px",
            reason=f"larger than the frame of {size[0]}x{size[1]} px",
            hint="Lower --width, or raise --size.",
        )
    box = (left, top, right, bottom)
    part = _pixels.resized(product.crop(box), (width, height))
    inner = _pixels.resized_mask(mask[top:bottom, left:right], (width, height))
    colour = _pixels.border_colour(product)
    frame, framed_mask = Pillow.new("RGB", size, colour), np.zeros((size[1], size[0]), np.float32)
    x, y = (size[0] - width) // 2, (size[1] - height) // 2
    frame.paste(part, (x, y))
    framed_mask[y : y + height, x : x + width] = inner
    return frame, framed_mask


def _figures(job: Job, image: Image, framed: Image, style: Image, mask: Weights) -> dict[str, Any]:
    outside = mask < 0.5
    figures: dict[str, Any] = {
        "product_difference": _pixels.largest_difference(image, framed, mask),
        "seam": _pixels.seam(image, mask),
        "seam_before": _pixels.seam(framed, mask),
        "scene_colour_distance": _pixels.colour_distance(image, style, outside),
        "scene_colour_distance_before": _pixels.colour_distance(framed, style, outside),
    }
    if job.on_bundled_base:
        figures["product_kept"] = _judged.kept(job, [image], framed, _judged.OBJECT)[0]
        figures["background_of_style"] = _judged.kept(job, [image], style, ["background"])[0]
        figures["text_obeyed"] = _judged.obeyed(job, [image], job.inputs.prompt)[0]
    return figures


WORKFLOW = Workflow(
    name="product",
    summary="a product in a new scene: its own pixels, another picture's style, words",
    inputs=Inputs,
    steps=steps,
    measures={
        "product_difference": "largest difference of the product's pixels, 0..255: 0 when kept",
        "seam": "colour jump across the product's edge, as a multiple of that beside it",
        "seam_before": "the same in the product's picture",
        "scene_colour_distance": "distance of the colours outside the product from the style "
        "picture's, in Lab; 2.3 is just visible",
        "scene_colour_distance_before": "the same before",
        "product_kept": "share of the product's shape, colour and texture that the judge reads "
        "alike; bundled stacks only",
        "background_of_style": "is the background that of the style picture? bundled stacks only",
        "text_obeyed": "share of the prompt's words that the judge reads; bundled stacks only",
    },
    references=("product", "style"),
)
