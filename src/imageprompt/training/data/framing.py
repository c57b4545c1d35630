"""From a picture of any size to what the denoiser is trained on: bucket, crop, flip, SDXL sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from imageprompt.core.errors import OptionError
from imageprompt.training.data.random_streams import mix_seeds

if TYPE_CHECKING:
    from PIL.Image import Image

Size = tuple[int, int]
"""Width and height in pixels."""

_WIDEST = 4.0  # aspect of the widest bucket, and of the tallest one


@dataclass(frozen=True)
class Framing:
    """What of a picture is shown: it is flipped, scaled, cropped, in this order.

    The crop lies in the scaled picture. `scaled` and `crop` in pixels, `original` before scaling.
    """

    original: Size
    scaled: Size
    crop: Size
    left: int
    top: int
    flip: bool = False

    def time_ids(self) -> list[int]:
        """SDXL's conditioning: original height, width; crop top, left; target height, width."""
        (w, h), (target_w, target_h) = self.original, self.crop
        return [h, w, self.top, self.left, target_h, target_w]

    @property
    def enlarges(self) -> bool:
        """Is the picture smaller than what is shown of it?"""
        return self.scaled[0] > self.original[0]

    def apply(self, picture: Image) -> Image:
        """The part of `picture` (of the size `original`), `crop` large."""
        from PIL import Image as Pillow

        if self.flip:
            picture = picture.transpose(Pillow.Transpose.FLIP_LEFT_RIGHT)
        across, down = (o / s for o, s in zip(self.original, self.scaled, strict=True))
        right, bottom = self.left + self.crop[0], self.top + self.crop[1]
        box = (
            self.left * across,
            self.top * down,
            min(right * across, self.original[0]),  # rounding must not lead beyond the edge
            min(bottom * down, self.original[1]),
        )
        # only what is shown is scaled; LANCZOS smooths before it shrinks
        return picture.resize(self.crop, Pillow.Resampling.LANCZOS, box)


@dataclass(frozen=True, kw_only=True)
class PictureOptions:
    """How pictures are framed; the configuration's keys of these names."""

    resolution: int | Size = 512
    """Side of a square, or width and height."""
    crop: Literal["center", "random"] = "center"
    flip: bool | float = False
    """RandomStreams that a picture is mirrored; true is one half."""
    buckets: bool | Sequence[Size] = False
    """True: aspect ratios with the area of `resolution`. A list: these sizes and no others."""
    views: int = 4
    """How many random framings a picture has, fixed ones, so that they can be cached. 0: a new one
    each time, which no cache can hold."""

    def __post_init__(self) -> None:
        sides = [side for size in self.sizes for side in size]
        if not sides or min(sides) < 8 or any(side % 8 for side in sides):
            raise OptionError(
                f"picture sizes {', '.join(f'{w}x{h}' for w, h in self.sizes)}",
                reason="a side is a multiple of 8",
                hint="Change resolution or buckets.",
            )
        if not 0 <= self.flip <= 1 or self.views < 0:
            raise OptionError(
                f"flip {self.flip} and views {self.views}",
                reason="flip is a chance from 0 to 1, and there are no fewer than 0 views",
                hint="Change them.",
            )

    @cached_property
    def sizes(self) -> tuple[Size, ...]:
        """Every size that a framed picture can have."""
        plain = self.resolution
        width, height = (plain, plain) if isinstance(plain, int) else plain
        if self.buckets is True:
            return aspect_sizes(width, height)
        if self.buckets:
            return tuple((int(w), int(h)) for w, h in self.buckets)
        return ((width, height),)

    @property
    def chance_of_flip(self) -> float:
        return 0.5 if self.flip is True else float(self.flip)

    @property
    def fixed_views(self) -> int:
        """Different framings of a picture, 0 for endlessly many."""
        return self.views if self.crop == "random" or self.flip else 1

    def identity(self) -> str:
        """Changes when anything does that decides how a picture is framed."""
        return f"{self.sizes} {self.crop} {self.chance_of_flip} {self.fixed_views}"

    def bucket(self, original: Size) -> int:
        """Which of `sizes` is nearest in aspect; of equal ones the largest that is not larger."""
        found = self._buckets.get(original)
        if found is None:
            found = self._buckets[original] = self._nearest(original)
        return found

    @cached_property
    def _buckets(self) -> dict[Size, int]:
        """What was found for the sizes asked for: pictures have few different ones."""
        return {}

    def _nearest(self, original: Size) -> int:
        aspect = math.log(original[0] / original[1])

        def far(index: int) -> tuple[float, bool, int]:
            width, height = self.sizes[index]
            larger = width > original[0] or height > original[1]
            area = width * height
            return (
                round(abs(math.log(width / height) - aspect), 6),
                larger,
                area if larger else -area,
            )

        return min(range(len(self.sizes)), key=far)

    def view(self, original: Size, digest: bytes, number: int) -> Framing:
        """Framing `number` of a picture whose bytes hash to `digest`."""
        if self.fixed_views == 1 and self.crop == "center" and not self.flip:
            return self.framing(original, 0.5, 0.5, 1.0)
        seed = mix_seeds(int.from_bytes(digest[:8], "big"), number)
        draws = torch.rand(3, generator=torch.Generator().manual_seed(seed))
        return self.framing(original, *draws.tolist())

    def framing(self, original: Size, across: float, down: float, mirror: float) -> Framing:
        """What three numbers from [0, 1) decide; a centre crop ignores the first two."""
        crop = self.sizes[self.bucket(original)]
        factor = max(c / o for c, o in zip(crop, original, strict=True))
        width, height = (max(c, round(o * factor)) for c, o in zip(crop, original, strict=True))
        if self.crop == "center":
            left, top = (width - crop[0]) // 2, (height - crop[1]) // 2
        else:
            left, top = int(across * (width - crop[0] + 1)), int(down * (height - crop[1] + 1))
        return Framing(original, (width, height), crop, left, top, mirror < self.chance_of_flip)


def aspect_sizes(width: int, height: int) -> tuple[Size, ...]:
    """Sizes with the area of width x height, from 1:4 to 4:1, sides in steps of 1/16 of its side.

    The longest other side that keeps within the area, for each width and for each height: at
    1024 x 1024 a list much like SDXL's own.
    """
    side = math.isqrt(width * height)
    step = max(8, side // 128 * 8)
    found = set()
    for one in range(step, side * 2 + 1, step):
        other = width * height // one // step * step
        if other and max(one / other, other / one) <= _WIDEST:
            found |= {(one, other), (other, one)}
    return tuple(sorted(found))


def to_pixels(pictures: Sequence[Image]) -> Tensor:
    """RGB pictures of one size -> float32 [n, 3, h, w] from -1 to 1."""
    import numpy as np

    arrays: Any = np.stack([np.asarray(picture) for picture in pictures])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 127.5 - 1
