"""Where in the picture a reference acts: masks laid out for the queries of every resolution.

The arithmetic is that of diffusers' `IPAdapterMaskProcessor.downsample`: bicubic, and not clamped,
so that hard edges may overshoot. The size is not: it is the level of the UNet that has as many
positions as there are queries, told from the latents instead of guessed from their number.

Shapes: R rows (1, or one for each prompt), H x W the mask's own size, Q query positions.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from torch.nn import functional as F

from imageprompt.errors import GuidanceError


def laid_out(mask: Tensor, latents: tuple[int, int], queries: int) -> Tensor:
    """A mask [R, 1, H, W] -> weights [R, 1, Q, 1] of the queries, float32.

    Raises GuidanceError for a number of queries that no level of the UNet has.
    """
    size = next((level for level in levels(*latents) if level[0] * level[1] == queries), None)
    if size is None:
        height, width = latents
        raise GuidanceError(
            f"a mask at {queries} positions",
            rule=f"no level of latents of {height}x{width} has as many",
            remedy="Use the reference without a mask on this base.",
        )
    resized = F.interpolate(mask.float(), size=size, mode="bicubic")
    return resized.flatten(2).transpose(1, 2).unsqueeze(1)


def levels(height: int, width: int) -> Iterator[tuple[int, int]]:
    """The sizes of a UNet's levels: each half of the one before, rounded up."""
    yield height, width
    while (height, width) != (1, 1):
        height, width = (height + 1) // 2, (width + 1) // 2
        yield height, width
