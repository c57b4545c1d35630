"""References: pictures opened, framed, masked and encoded, before they are fused."""

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
from imageprompt.encoding.images.open_image import PictureSource, open_picture

if TYPE_CHECKING:
    from PIL.Image import Image

    from imageprompt.encoding.images.framing import Framing
    from imageprompt.encoding.images.noise import Noise

Pictures = Sequence[PictureSource] | Sequence[Sequence[PictureSource]]
"""The references of one prompt, or a list with the references of each of several prompts."""


@dataclass(frozen=True)
class References:
    """The pictures that an encoder reads, prompt by prompt, and what each of them belongs to.

    `pictures` are squares; without framing they are the pictures themselves, which the encoder
    preprocesses in its own way. `per_picture[p][i]` is the number of references made from picture i
    of prompt p: several with tiles. `squares_each[p]` is the number of squares that make each
    reference of prompt p: several with detail. `masks` are squares in mode "L", one a picture.
    """

    pictures: list[list[Image]]
    per_picture: list[list[int]]
    squares_each: list[list[int]]
    masks: list[list[Image]] | None = None

    @classmethod
    def open(
        cls, sources: Any, encoder: Encoder, framing: Framing | None, mask: Any = None
    ) -> References:
        """Raises PictureError, OptionError."""
        opened = [[open_picture(source) for source in group] for group in by_prompt(sources)]
        side = encoder.image_size
        framed = [
            [[picture] if framing is None else framing.frame(picture, side) for picture in group]
            for group in opened
        ]
        sizes = [
            [[1] if framing is None else framing.pooled(len(squares)) for squares in group]
            for group in framed
        ]
        return cls(
            [[square for squares in group for square in squares] for group in framed],
            [[len(pooled) for pooled in group] for group in sizes],
            [[size for pooled in group for size in pooled] for group in sizes],
            None if mask is None else _framed_masks(mask, opened, framing, side),
        )

    def with_noise(self, encoder: Encoder, noise: Noise, seed: int) -> References:
        """A noisy version of every square; square i of a prompt uses seed + i."""
        from imageprompt.encoding.images.framing import Framing

        frame, side = Framing().frame, encoder.image_size
        noisy = [
            [noise.apply(frame(picture, side)[0], seed + i) for i, picture in enumerate(group)]
            for group in self.pictures
        ]
        return References(noisy, self.per_picture, self.squares_each)

    def encode(self, encoder: Encoder, feature: ImageFeature) -> list[Tensor]:
        """Features of every prompt's references, [n, ...] each."""
        flat = [square for group in self.pictures for square in group]
        if self.masks is None:
            features = encoder.encode(flat, feature)
        else:
            features = _encode_masked(
                encoder, flat, [mask for row in self.masks for mask in row], feature
            )
        groups = torch.split(features, [len(group) for group in self.pictures])
        return [
            torch.cat([_pool(part) for part in torch.split(group, sizes)])
            for group, sizes in zip(groups, self.squares_each, strict=True)
        ]


def by_prompt(sources: Any) -> list[list[Any]]:
    """[[...], ...]: the references of every prompt. Raises PictureError if there are none."""
    if not isinstance(sources, list | tuple):
        sources = [sources]
    nested = [isinstance(entry, list | tuple) for entry in sources]
    groups = [list(entry) for entry in sources] if all(nested) else [list(sources)]
    if not sources or any(not group for group in groups) or (any(nested) and not all(nested)):
        raise PictureError(
            "references",
            reason="not a list of pictures, or of one non-empty list for each prompt",
            hint="Give at least one picture: encode([picture]) or encode([[a], [b]]).",
        )
    return groups


def _pool(parts: Tensor) -> Tensor:
    """Features of the n x n parts of a square -> of one picture, [1, F] or [1, L, F].

    Patches take their places in the whole and are pooled to as many as one part has. Pooled
    embeddings and class tokens are averaged.
    """
    if len(parts) == 1:
        return parts
    if parts.ndim == 2:
        return parts.mean(0, keepdim=True)
    n, g = math.isqrt(len(parts)), math.isqrt(parts.shape[1])
    tokens = parts.shape[1] - g * g  # the class token, if the encoder has one
    grid = parts[:, tokens:].reshape(n, n, g, g, -1)  # row, column, y, x, F
    whole = grid.permute(4, 0, 2, 1, 3).flatten(3).flatten(1, 2)
    patches = F.avg_pool2d(whole, n).flatten(1).T
    return torch.cat([parts[:, :tokens].mean(0), patches])[None]


def _encode_masked(
    encoder: Encoder, pictures: list[Image], masks: list[Image], feature: ImageFeature
) -> Tensor:
    """Encode normalised pixels times the mask: masked-out pixels have the mean colour.

    As in ComfyUI_IPAdapter_plus. Raises EncoderError for an encoder without `preprocess`.
    """
    import numpy as np

    if not isinstance(encoder, PixelEncoder):
        raise EncoderError(
            "a mask on the reference",
            reason=f"{type(encoder).__name__} gives no access to its pixels",
            hint="Paint over the picture instead, or use a CLIP encoder.",
        )
    pixels = encoder.preprocess(pictures)
    weights = torch.from_numpy(np.stack([np.asarray(mask, np.float32) / 255 for mask in masks]))
    return encoder.encode_pixels(pixels * weights[:, None].to(pixels), feature)


def _framed_masks(
    mask: Any, opened: list[list[Image]], framing: Framing | None, side: int
) -> list[list[Image]]:
    from imageprompt.encoding.images.framing import Framing

    framing = framing or Framing()
    return [
        [square for one in row for square in framing.frame_mask(one, side)]
        for row in _masks_by_prompt(mask, opened)
    ]


def _masks_by_prompt(mask: Any, opened: list[list[Image]]) -> list[list[Image]]:
    """A mask in the size of each picture; a single one is used for all. Raises OptionError."""
    if isinstance(mask, list | tuple) and len(mask) == 1 and not isinstance(mask[0], list | tuple):
        (mask,) = mask
    if not isinstance(mask, list | tuple):
        return [[_resized_mask(mask, picture) for picture in pictures] for pictures in opened]
    nested = any(isinstance(row, list | tuple) for row in mask)
    rows = list(mask) if nested else [mask] * len(opened)
    if list(map(_length, rows)) != list(map(len, opened)):
        raise OptionError(
            "masks on references",
            reason=f"{sum(map(_length, rows))} masks for {sum(map(len, opened))} reference(s)",
            hint="Give one mask for each reference, or one for all.",
        )
    return [
        [_resized_mask(one, picture) for one, picture in zip(row, pictures, strict=True)]
        for row, pictures in zip(rows, opened, strict=True)
    ]


def _length(row: object) -> int:
    return len(row) if isinstance(row, list | tuple) else 1


def _resized_mask(mask: Any, picture: Image) -> Image:
    """The mask in the picture's size. Raises OptionError unless it has the picture's shape."""
    from PIL import Image as Images

    from imageprompt.encoding.masks import open_mask

    weights = open_mask(mask, if_black="nothing of its reference is seen")
    grey = Images.fromarray((weights * 255).round().astype("uint8"))
    (w, h), (picture_w, picture_h) = grey.size, picture.size
    if abs(w * picture_h - h * picture_w) > max(picture_w, picture_h, w, h):  # a pixel of rounding
        raise OptionError(
            f"a mask of {w}x{h} on a reference of {picture_w}x{picture_h}",
            reason="it does not have the picture's shape",
            hint="Make it in the size of the picture.",
        )
    return grey.resize(picture.size, Images.Resampling.BICUBIC)
