"""What pictures start from besides noise: init image, inpaint mask, control image, in one size."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from imageprompt.core.errors import OptionError
from imageprompt.generation.request import Request
from imageprompt.loading import source_of

if TYPE_CHECKING:
    from PIL.Image import Image

Size = tuple[int, int]
"""Width and height in pixels."""


@dataclass(frozen=True)
class Start:
    """The pictures, opened, and what a recipe keeps of them, by the names of the request."""

    init: Image | None
    mask: Image | None
    control: Image | None
    sources: Mapping[str, Any]

    @classmethod
    def open(cls, request: Request) -> Start:
        """Raises PictureError, OptionError."""
        from imageprompt.encoding.images.open_image import open_picture

        named = {
            name: getattr(request, name)
            for name in ("init_image", "inpaint_mask", "control_image")
            if getattr(request, name) is not None
        }
        opened = {
            name: _mask(given) if name == "inpaint_mask" else open_picture(given)
            for name, given in named.items()
        }
        return cls(
            opened.get("init_image"),
            opened.get("inpaint_mask"),
            opened.get("control_image"),
            {name: source_of(given) for name, given in named.items()},
        )

    def size(self, wanted: Size | None, pipe: Any) -> Size | None:
        """What the pictures will measure; None leaves it to the pipeline. Raises OptionError.

        Without a wish: the shape of the init (or control) image, near to the number of pixels that
        the base makes by itself, in multiples of what its VAE works in.
        """
        factor = getattr(pipe, "vae_scale_factor", 8)
        if wanted is not None:
            _check_multiple(wanted, factor)
            return wanted
        first = self.init or self.control
        return None if first is None else _near(first.size, _own_area(pipe, factor), factor)

    def fitted(self, size: Size | None) -> Start:
        """All in this size; what is scaled or squeezed is said."""
        if size is None:
            return self
        for name, image in (("init image", self.init), ("control image", self.control)):
            if image is not None and image.size != size:
                _say(name, image.size, size)
        init, mask, control = (
            None if image is None else _scaled(image, size)
            for image in (self.init, self.mask, self.control)
        )
        return replace(self, init=init, mask=mask, control=control)


def _mask(given: Any) -> Image:
    from PIL import Image

    from imageprompt.encoding.masks import open_mask

    return Image.fromarray(
        (open_mask(given, black="nothing of the picture changes") * 255).round().astype("uint8")
    )


def _check_multiple(size: Size, factor: int) -> None:
    width, height = size
    if width % factor or height % factor:
        raise OptionError(
            f"size {width}x{height}",
            reason=f"this base makes sides that are multiples of {factor}",
            hint=f"Try {max(1, round(width / factor)) * factor}x"
            f"{max(1, round(height / factor)) * factor}.",
        )


def _own_area(pipe: Any, factor: int) -> int:
    """How many pixels the base's own pictures have."""
    denoiser = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    side = getattr(getattr(denoiser, "config", None), "sample_size", None) or 64
    width, height = side if isinstance(side, list | tuple) else (side, side)
    return int(width * factor * height * factor)


def _near(size: Size, area: int, factor: int) -> Size:
    """The same shape with about that many pixels, in multiples of `factor`."""
    scale = math.sqrt(area / (size[0] * size[1]))
    width, height = (max(1, round(side * scale / factor)) * factor for side in size)
    return width, height


def _scaled(image: Image, size: Size) -> Image:
    from PIL.Image import Resampling

    return image if image.size == size else image.resize(size, Resampling.LANCZOS)


def _say(name: str, was: Size, size: Size) -> None:
    (width, height), (wide, high) = was, size
    stretch = (wide / width) / (high / height)
    how = "scaled" if 0.97 < stretch < 1.03 else "scaled and squeezed"
    warnings.warn(
        f"{name} of {width}x{height} pixels: {how} to {wide}x{high}; --size WxH asks for another",
        stacklevel=6,
    )
