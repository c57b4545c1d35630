"""References: pictures opened, framed, masked and encoded, before they are mixed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from imageprompt.core.errors import EncoderError, OptionError, PictureError
from imageprompt.core.spec import ImageFeature
from imageprompt.encoding.encoders.contract import Encoder, PixelEncoder
from imageprompt.encoding.images.framing import Framing
from imageprompt.encoding.images.noise import Noise
from imageprompt.encoding.images.open_image import PictureSource, open_picture

if TYPE_CHECKING:
    from PIL.Image import Image

Pictures = Sequence[PictureSource] | Sequence[Sequence[PictureSource]]
"""References of one prompt, or a list of several prompts'."""


@dataclass(frozen=True)
class References:
    """What an encoder is shown, prompt by prompt, and from which picture each of it came.

    `shown` are squares, or where nothing was asked for, the pictures themselves, which the encoder
    prepares in its own way. `counts[p][i]` references come from picture i of prompt p: several with
    tiles. `pooled[p]` squares at a time are one reference of prompt p. `masks` are squares in mode
    "L" beside them.
    """

    shown: list[list[Image]]
    counts: list[list[int]]
    pooled: list[list[int]]
    masks: list[list[Image]] | None = None

    @classmethod
    def of(
        cls, pictures: Any, encoder: Encoder, framing: Framing | None, mask: Any = None
    ) -> References:
        """Raises PictureError, OptionError."""
        opened = [[open_picture(picture) for picture in group] for group in groups_of(pictures)]
        side = encoder.image_size
        framed = [
            [[picture] if framing is None else framing.frame(picture, side) for picture in group]
            for group in opened
        ]
        cut, masks = framing or Framing(), None
        if mask is not None:
            masks = [
                [part for one in row for part in cut.frame_mask(one, side)]
                for row in _masks_of(mask, opened)
            ]
        made = [[cut.pooled(len(squares)) for squares in group] for group in framed]
        return cls(
            [[square for squares in group for square in squares] for group in framed],
            [[len(sizes) for sizes in group] for group in made],
            [[size for sizes in group for size in sizes] for group in made],
            masks,
        )

    def noisy(self, encoder: Encoder, noise: Noise, seed: int) -> References:
        """A noisy version of every square; square i of a prompt is drawn from seed + i."""
        frame, side = Framing().frame, encoder.image_size
        shown = [
            [noise.put_on(frame(picture, side)[0], seed + i) for i, picture in enumerate(group)]
            for group in self.shown
        ]
        return References(shown, self.counts, self.pooled)

    def encoded(self, encoder: Encoder, feature: ImageFeature) -> list[Tensor]:
        """Features of every prompt's references, [n, ...] each."""
        flat = [square for group in self.shown for square in group]
        if self.masks is None:
            features = encoder.encode(flat, feature)
        else:
            features = _masked(encoder, flat, [m for row in self.masks for m in row], feature)
        groups = torch.split(features, [len(group) for group in self.shown])
        return [
            torch.cat([_as_one(part) for part in torch.split(group, sizes)])
            for group, sizes in zip(groups, self.pooled, strict=True)
        ]


def groups_of(pictures: Any) -> list[list[PictureSource]]:
    """[[...], ...]: the references of every prompt. Raises PictureError when there is none."""
    if not isinstance(pictures, list | tuple):
        pictures = [pictures]
    nested = [isinstance(entry, list | tuple) for entry in pictures]
    groups = [list(entry) for entry in pictures] if all(nested) else [list(pictures)]
    if not pictures or any(not group for group in groups) or (any(nested) and not all(nested)):
        raise PictureError(
            "references",
            reason="a list of pictures, or one non-empty list for each prompt",
            hint="Give at least one picture: encode([picture]) or encode([[a], [b]]).",
        )
    return groups


def _as_one(parts: Tensor) -> Tensor:
    """Features of n x n parts of a square -> of one picture, [1, F] or [1, L, F].

    Patches take their places in the whole and are pooled to as many as one part has; pooled
    embeddings and class tokens are averaged.
    """
    if len(parts) == 1:
        return parts
    if parts.ndim == 2:
        return parts.mean(0, keepdim=True)
    n, g = math.isqrt(len(parts)), math.isqrt(parts.shape[1])
    lone = parts.shape[1] - g * g  # the class token, where the encoder has one
    grid = parts[:, lone:].reshape(n, n, g, g, -1)  # row, column, y, x, F
    whole = grid.permute(4, 0, 2, 1, 3).flatten(3).flatten(1, 2)
    patches = F.avg_pool2d(whole, n).flatten(1).T
    return torch.cat([parts[:, :lone].mean(0), patches])[None]


def _masked(
    encoder: Encoder, pictures: list[Image], masks: list[Image], feature: ImageFeature
) -> Tensor:
    """Normalised pixels times the mask: what is masked out is the mean colour, as in the peer."""
    import numpy as np

    if not isinstance(encoder, PixelEncoder):
        raise EncoderError(
            "a mask on the reference",
            reason=f"{type(encoder).__name__} does not show its pixels",
            hint="Paint over the picture instead, or use a CLIP encoder.",
        )
    pixels = encoder.preprocess(pictures)
    shares = torch.from_numpy(np.stack([np.asarray(mask, np.float32) / 255 for mask in masks]))
    return encoder.encode_pixels(pixels * shares[:, None].to(pixels), feature)


def _masks_of(mask: Any, opened: list[list[Image]]) -> list[list[Image]]:
    """A mask in the size of each picture; one given is for all of them. Raises OptionError."""
    if isinstance(mask, list | tuple) and len(mask) == 1 and not isinstance(mask[0], list | tuple):
        (mask,) = mask
    if not isinstance(mask, list | tuple):
        return [[_fitted(mask, picture) for picture in pictures] for pictures in opened]
    nested = any(isinstance(row, list | tuple) for row in mask)
    rows = list(mask) if nested else [mask] * len(opened)
    if list(map(_length, rows)) != list(map(len, opened)):
        raise OptionError(
            "masks on references",
            reason=f"{sum(map(_length, rows))} of them for {sum(map(len, opened))} reference(s)",
            hint="Give one mask for each reference, or one for all.",
        )
    return [
        [_fitted(one, picture) for one, picture in zip(row, pictures, strict=True)]
        for row, pictures in zip(rows, opened, strict=True)
    ]


def _length(row: object) -> int:
    return len(row) if isinstance(row, list | tuple) else 1


def _fitted(mask: Any, picture: Image) -> Image:
    """Scaled to the picture's size, whose shape it must have."""
    from PIL import Image as Images

    from imageprompt.encoding.masks import open_mask

    grey = Images.fromarray(
        (open_mask(mask, black="nothing of its reference is seen") * 255).round().astype("uint8")
    )
    (w, h), (wide, high) = grey.size, picture.size
    if abs(w * high - h * wide) > max(wide, high, w, h):  # a pixel of rounding on a side
        raise OptionError(
            f"a mask of {w}x{h} on a reference of {wide}x{high}",
            reason="it must have the picture's shape",
            hint="Make it in the size of the picture.",
        )
    return grey.resize(picture.size, Images.Resampling.BICUBIC)
