"""Masks: from whatever a user calls a mask to weights 0..1 that say where something acts.

Torch is not imported here.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imageprompt.core.errors import OptionError

Weights = NDArray[np.float32]

_NO_EFFECT = "its reference has no effect"


def open_mask(source: Any, *, if_black: str = "") -> Weights:
    """Weights [H, W] in 0..1 from a picture (PIL, path, bytes) or an array (or tensor).

    A picture with transparent parts gives its alpha, any other its brightness (white is 1). An
    array [H, W] (or with one channel) holds 0..1, or 0..255 if any number in it is above 1. Greys
    are in between. For a mask of zeros, `if_black` is the consequence that a warning names. Raises
    PictureError, OptionError.
    """
    from PIL import Image

    from imageprompt.encoding.images.arrays import is_file

    files = str | os.PathLike | bytes | bytearray | memoryview  # type: ignore[type-arg]
    if isinstance(source, files | Image.Image) or is_file(source):
        weights = _from_picture(source)
    else:
        weights = _from_array(source)
    if if_black and not weights.any():
        warnings.warn(f"a mask is black all over: {if_black}", stacklevel=3)
    return weights


def open_masks(source: Any, prompts: int) -> list[Weights]:
    """One mask for all prompts, or a list with one for each. Raises OptionError, PictureError."""
    if not isinstance(source, list | tuple):
        return [open_mask(source, if_black=_NO_EFFECT)]
    if not source:
        raise OptionError("masks", reason="the list is empty", hint="Give a mask, or leave it out.")
    if isinstance(source[0], list | tuple | int | float):  # an array, written as lists
        return [open_mask(_as_array(source), if_black=_NO_EFFECT)]
    if len(source) not in (1, prompts):
        raise OptionError(
            f"{len(source)} masks for {prompts} prompt(s)",
            reason="give one mask for all prompts, or one for each",
            hint="To give each reference its own mask, nest one use() block per reference.",
        )
    return [open_mask(one, if_black=_NO_EFFECT) for one in source]


def _from_picture(source: Any) -> Weights:
    from imageprompt.encoding.images.open_image import alpha_of, open_picture, open_upright

    image = open_upright(source)
    if image.has_transparency_data:
        alpha = np.asarray(alpha_of(image))
        if alpha.min() < 255:
            return _scaled(alpha, 255)
    return _scaled(np.asarray(open_picture(image).convert("L")), 255)


def _from_array(source: Any) -> Weights:
    from imageprompt.encoding.images.open_image import MAX_IN_MEMORY

    array = _as_array(source)
    shape = array.shape
    if array.ndim == 3 and 1 in (shape[0], shape[2]):
        array = array[0] if shape[0] == 1 else array[:, :, 0]
    if array.size > MAX_IN_MEMORY:
        raise OptionError(
            f"a mask of shape {list(shape)}",
            reason=f"more than {MAX_IN_MEMORY // 10**6} million numbers",
            hint="Scale it down.",
        )
    if array.ndim != 2 or 0 in array.shape:
        raise OptionError(
            f"a mask of shape {list(shape)}",
            reason="an array must be [height, width]",
            hint="Give one mask for each reference.",
        )
    if not np.isfinite(array).all() or array.min() < 0 or array.max() > 255:
        raise OptionError(
            "a mask",
            reason="its values are outside 0 to 1, or 0 to 255",
            hint="1 (or 255) is where the reference acts.",
        )
    return _scaled(array, 255 if array.max() > 1 else 1)


def _scaled(values: NDArray[Any], maximum: float) -> Weights:
    weights: Weights = values.astype(np.float32)
    weights /= np.float32(maximum)
    return weights


def _as_array(source: Any) -> NDArray[Any]:
    if hasattr(source, "detach"):  # a tensor on any device
        source = source.detach().cpu().float()
    try:
        array = np.asarray(source)
    except ValueError:  # lists of unequal lengths
        array = np.empty(0, dtype=object)
    if array.dtype.kind not in "biuf":
        raise OptionError(
            f"a mask of type {type(source).__name__}",
            reason="neither a picture (PIL image or path) nor an array of numbers",
            hint="White is where the reference acts.",
        )
    return array
