"""Init image, inpaint mask and control image, opened and scaled to one size."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from imageprompt.core.errors import OptionError
from imageprompt.generation.request import Request
from imageprompt.loading import open_references, record_of, vae_scale_factor

if TYPE_CHECKING:
    from PIL.Image import Image

    from imageprompt.loading.recipe import AssetRecord

Size = tuple[int, int]
"""Width and height in pixels."""


@dataclass(frozen=True)
class StartImages:
    """The opened pictures, and their records by the names of the request."""

    init: Image | None
    mask: Image | None
    control: Image | None
    records: Mapping[str, Any]

    @classmethod
    def open(cls, request: Request) -> StartImages:
        """Raises PictureError, OptionError."""
        images: dict[str, Image] = {}
        records: dict[str, AssetRecord] = {}
        for name in ("init_image", "control_image"):
            source = getattr(request, name)
            if source is not None:
                (images[name],), (records[name],) = open_references([source])
        if request.inpaint_mask is not None:
            images["inpaint_mask"] = _mask(request.inpaint_mask)
            records["inpaint_mask"] = record_of(request.inpaint_mask)
        return cls(
            images.get("init_image"),
            images.get("inpaint_mask"),
            images.get("control_image"),
            records,
        )

    def size(self, requested: Size | None, pipe: Any) -> Size | None:
        """The size of the pictures to make; None leaves it to the pipeline. Raises OptionError.

        By default the shape of the init (or control) image with about as many pixels as the base's
        own pictures have, in multiples of the VAE's scale factor.
        """
        factor = vae_scale_factor(pipe)
        if requested is not None:
            _check_multiple(requested, factor)
            return requested
        first = self.init or self.control
        return None if first is None else _near(first.size, _own_area(pipe, factor), factor)

    def fitted(self, size: Size | None) -> StartImages:
        """All of them in this size. Warns about what is scaled or distorted."""
        if size is None:
            return self
        for name, image in (("init image", self.init), ("control image", self.control)):
            if image is not None and image.size != size:
                _warn_scaled(name, image.size, size)
        init, mask, control = (
            None if image is None else _scaled(image, size)
            for image in (self.init, self.mask, self.control)
        )
        return replace(self, init=init, mask=mask, control=control)


def _mask(source: Any) -> Image:
    from PIL import Image

    from imageprompt.encoding.masks import open_mask

    return Image.fromarray(
        (open_mask(source, if_black="nothing of the picture changes") * 255).round().astype("uint8")
    )


def _check_multiple(size: Size, factor: int) -> None:
    width, height = size
    if width % factor or height % factor:
        raise OptionError(
            f"size {width}x{height}",
            reason=f"sides must be multiples of {factor} for this base",
            hint=f"Try {max(1, round(width / factor)) * factor}x"
            f"{max(1, round(height / factor)) * factor}.",
        )


def _own_area(pipe: Any, factor: int) -> int:
    """Number of pixels in the base's own pictures."""
    denoiser = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    side = getattr(getattr(denoiser, "config", None), "sample_size", None) or 64
    width, height = side if isinstance(side, list | tuple) else (side, side)
    return int(width * factor * height * factor)


def _near(size: Size, area: int, factor: int) -> Size:
    """A size of the same shape with about `area` pixels, in multiples of `factor`."""
    scale = math.sqrt(area / (size[0] * size[1]))
    width, height = (max(1, round(side * scale / factor)) * factor for side in size)
    return width, height


def _scaled(image: Image, size: Size) -> Image:
    from PIL.Image import Resampling

    return image if image.size == size else image.resize(size, Resampling.LANCZOS)


def _warn_scaled(name: str, old: Size, new: Size) -> None:
    stretch = (new[0] / old[0]) / (new[1] / old[1])
    how = "scaled" if 0.97 < stretch < 1.03 else "scaled and distorted"
    warnings.warn(
        f"{name} of {old[0]}x{old[1]} pixels: {how} to {new[0]}x{new[1]}; use --size WxH for "
        "another size",
        stacklevel=6,
    )
