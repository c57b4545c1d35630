"""Init image, inpaint mask and control image: opened, and scaled to one size."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from imageprompt.generation.pipeline_call import Size, StartImages
from imageprompt.generation.request import Request
from imageprompt.loading import default_size, open_references, record_of, vae_scale_factor

if TYPE_CHECKING:
    from PIL.Image import Image

    from imageprompt.loading.recipe import AssetRecord


def open_start_images(request: Request) -> StartImages:
    """The images that a request starts from. Raises PictureError, OptionError."""
    images: dict[str, Image] = {}
    records: dict[str, AssetRecord] = {}
    for name in ("init_image", "control_image"):
        source = getattr(request, name)
        if source is not None:
            (images[name],), (records[name],) = open_references([source])
    if request.inpaint_mask is not None:
        images["inpaint_mask"] = _mask(request.inpaint_mask)
        records["inpaint_mask"] = record_of(request.inpaint_mask)
    return StartImages(
        images.get("init_image"), images.get("inpaint_mask"), images.get("control_image"), records
    )


def own_size(start: StartImages, pipe: Any) -> Size | None:
    """The size of the pictures if the request gives none; None without init or control image.

    It has the shape of that image, about as many pixels as the base's own pictures, and sides that
    are multiples of the VAE's scale factor.
    """
    first = start.init or start.control
    if first is None:
        return None
    factor = vae_scale_factor(pipe)
    scale = math.sqrt(math.prod(default_size(pipe)) / (first.width * first.height))
    width, height = (max(1, round(side * scale / factor)) * factor for side in first.size)
    return width, height


def fit(start: StartImages, size: Size | None) -> StartImages:
    """All images in this size. Warns about what is scaled or distorted."""
    if size is None:
        return start
    for name, image in (("init image", start.init), ("control image", start.control)):
        if image is not None and image.size != size:
            _warn_scaled(name, image.size, size)
    init, mask, control = (
        None if image is None else _scaled(image, size)
        for image in (start.init, start.mask, start.control)
    )
    return replace(start, init=init, mask=mask, control=control)


def _mask(source: Any) -> Image:
    from PIL import Image

    from imageprompt.encoding.masks import open_mask

    weights = open_mask(source, if_black="nothing of the picture changes")
    return Image.fromarray((weights * 255).round().astype("uint8"))


def _scaled(image: Image, size: Size) -> Image:
    from PIL.Image import Resampling

    return image if image.size == size else image.resize(size, Resampling.LANCZOS)


def _warn_scaled(name: str, old: Size, new: Size) -> None:
    stretch = (new[0] / old[0]) / (new[1] / old[1])
    how = "scaled" if 0.97 < stretch < 1.03 else "scaled and distorted"
    warnings.warn(
        f"{name} of {old[0]}x{old[1]} pixels: {how} to {new[0]}x{new[1]}; use --size WxH for "
        "another size",
        stacklevel=5,
    )
