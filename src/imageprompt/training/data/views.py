"""From a picture of any size to the view that is trained on: bucket, crop, flip, SDXL's sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from imageprompt.core.errors import OptionError
from imageprompt.training.data.dataset import mix_seeds

if TYPE_CHECKING:
    from PIL.Image import Image

    from imageprompt.training.config.config import TrainingConfig

Size = tuple[int, int]
"""Width and height in pixels."""

_MAX_ASPECT = 4.0  # of the widest bucket; the tallest has its inverse


@dataclass(frozen=True)
class View:
    """How a picture is flipped, scaled and cropped, in this order.

    `original`, `scaled` and `crop` are sizes in pixels; `left` and `top` place the crop in the
    scaled picture.
    """

    original: Size
    scaled: Size
    crop: Size
    left: int
    top: int
    flip: bool = False

    def time_ids(self) -> list[int]:
        """SDXL's conditioning: original height, width; crop top, left; target height, width."""
        (width, height), (target_width, target_height) = self.original, self.crop
        return [height, width, self.top, self.left, target_height, target_width]

    @property
    def upscales(self) -> bool:
        """Whether the picture is smaller than the view requires."""
        return self.scaled[0] > self.original[0]

    def apply(self, picture: Image) -> Image:
        """This view of `picture` (of size `original`), of size `crop`."""
        from PIL import Image as Pillow

        if self.flip:
            picture = picture.transpose(Pillow.Transpose.FLIP_LEFT_RIGHT)
        x_ratio, y_ratio = (o / s for o, s in zip(self.original, self.scaled, strict=True))
        right, bottom = self.left + self.crop[0], self.top + self.crop[1]
        box = (
            self.left * x_ratio,
            self.top * y_ratio,
            min(right * x_ratio, self.original[0]),  # rounding must not leave the picture
            min(bottom * y_ratio, self.original[1]),
        )
        # only the cropped part is resampled; LANCZOS low-passes before it shrinks
        return picture.resize(self.crop, Pillow.Resampling.LANCZOS, box)


@dataclass(frozen=True, kw_only=True)
class PictureOptions:
    """How pictures are cropped and flipped; the config keys of these names."""

    resolution: int | Size = 512
    """Side of a square, or width and height."""
    crop: Literal["center", "random"] = "center"
    flip: bool | float = False
    """Probability of mirroring a picture; True is 0.5."""
    buckets: bool | Sequence[Size] = False
    """True: aspect ratios with the area of `resolution`. A list: exactly these sizes."""
    views: int = 4
    """Number of fixed random views of a picture, so that they can be cached. 0: a new view each
    time, which cannot be cached."""

    def __post_init__(self) -> None:
        sides = [side for size in self.sizes for side in size]
        if not sides or min(sides) < 8 or any(side % 8 for side in sides):
            raise OptionError(
                f"picture sizes {', '.join(f'{w}x{h}' for w, h in self.sizes)}",
                reason="every side must be a multiple of 8",
                hint="Change resolution or buckets.",
            )
        if not 0 <= self.flip <= 1 or self.views < 0:
            raise OptionError(
                f"flip {self.flip} and views {self.views}",
                reason="flip must be between 0 and 1, and views at least 0",
                hint="Change them.",
            )

    @classmethod
    def of(cls, config: TrainingConfig) -> PictureOptions:
        """The options in a training config."""
        return cls(
            resolution=config.resolution,
            crop=config.crop,
            flip=config.flip,
            buckets=config.buckets,
            views=config.views,
        )

    @cached_property
    def sizes(self) -> tuple[Size, ...]:
        """Every size that a view can have: one per bucket."""
        side = self.resolution
        width, height = (side, side) if isinstance(side, int) else side
        if self.buckets is True:
            return aspect_sizes(width, height)
        if self.buckets:
            return tuple((int(w), int(h)) for w, h in self.buckets)
        return ((width, height),)

    @property
    def flip_probability(self) -> float:
        return 0.5 if self.flip is True else float(self.flip)

    @property
    def fixed_views(self) -> int:
        """Number of different views of a picture; 0: unlimited."""
        return self.views if self.crop == "random" or self.flip else 1

    def identity(self) -> str:
        """Changes with everything that decides the views of a picture."""
        return f"{self.sizes} {self.crop} {self.flip_probability} {self.fixed_views}"

    def bucket(self, original: Size) -> int:
        """The index in `sizes` of the nearest aspect ratio.

        Of equally near ones, the largest that does not exceed the picture.
        """
        found = self._buckets.get(original)
        if found is None:
            found = self._buckets[original] = self._nearest(original)
        return found

    @cached_property
    def _buckets(self) -> dict[Size, int]:
        """Results of `bucket`: the pictures of a data set have few different sizes."""
        return {}

    def _nearest(self, original: Size) -> int:
        aspect = math.log(original[0] / original[1])

        def distance(index: int) -> tuple[float, bool, int]:
            width, height = self.sizes[index]
            larger = width > original[0] or height > original[1]
            area = width * height
            return (
                round(abs(math.log(width / height) - aspect), 6),
                larger,
                area if larger else -area,
            )

        return min(range(len(self.sizes)), key=distance)

    def view(self, original: Size, content_hash: bytes, number: int) -> View:
        """View `number` of a picture whose bytes have this hash."""
        if self.fixed_views == 1 and self.crop == "center" and not self.flip:
            return self.view_at(original, 0.5, 0.5, 1.0)
        seed = mix_seeds(int.from_bytes(content_hash[:8], "big"), number)
        draws = torch.rand(3, generator=torch.Generator().manual_seed(seed))
        return self.view_at(original, *draws.tolist())

    def view_at(self, original: Size, x: float, y: float, flip: float) -> View:
        """The view for three numbers in [0, 1): crop position (random crops only), flip draw."""
        crop = self.sizes[self.bucket(original)]
        factor = max(c / o for c, o in zip(crop, original, strict=True))
        width, height = (max(c, round(o * factor)) for c, o in zip(crop, original, strict=True))
        if self.crop == "center":
            left, top = (width - crop[0]) // 2, (height - crop[1]) // 2
        else:
            left, top = int(x * (width - crop[0] + 1)), int(y * (height - crop[1] + 1))
        return View(original, (width, height), crop, left, top, flip < self.flip_probability)


def aspect_sizes(width: int, height: int) -> tuple[Size, ...]:
    """Sizes with at most the area of width x height, from 1:4 to 4:1, in steps of a side's 1/16.

    For each width and for each height, the longest other side within the area. At 1024 x 1024 the
    list is close to SDXL's own (arXiv 2307.01952, appendix I).
    """
    side = math.isqrt(width * height)
    step = max(8, side // 128 * 8)
    found = set()
    for one in range(step, side * 2 + 1, step):
        other = width * height // one // step * step
        if other and max(one / other, other / one) <= _MAX_ASPECT:
            found |= {(one, other), (other, one)}
    return tuple(sorted(found))


def to_pixels(pictures: Sequence[Image]) -> Tensor:
    """RGB pictures of one size -> float32 [n, 3, h, w] in [-1, 1]."""
    import numpy as np

    arrays: Any = np.stack([np.asarray(picture) for picture in pictures])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 127.5 - 1
