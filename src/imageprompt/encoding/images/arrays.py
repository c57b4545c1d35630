"""Pictures as arrays, tensors and open files: each has one reading, or it is an error."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imageprompt.core.errors import PictureError
from imageprompt.encoding.images.open_image import MAX_IN_MEMORY

_CHANNELS = (1, 3, 4)  # grey, RGB, RGBA
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_BLOCK = 2**20  # bytes that are read, and pixels that are converted, at a time


def is_array(source: object) -> bool:
    """Is it a numpy array or a tensor?"""
    return isinstance(source, np.ndarray) or (
        hasattr(source, "detach") and hasattr(source, "shape")
    )


def is_file(source: object) -> bool:
    """Is it an open file, or io.BytesIO?"""
    return callable(getattr(source, "read", None)) and not isinstance(source, Image.Image)


def read_file(source: Any, label: str, limit: int) -> bytes:
    """Up to `limit` bytes of an open file, from its start; its position stays. PictureError."""
    try:
        position = source.tell()
        source.seek(0)
        try:
            data = _read_up_to(source, limit, label)
        finally:
            source.seek(position)
    except (OSError, ValueError) as error:  # ValueError: it is closed; OSError: a pipe
        raise PictureError(
            label, reason=f"cannot be read ({error})", hint="Give its path, or its bytes."
        ) from error
    return data


def _read_up_to(source: Any, limit: int, label: str) -> bytes:
    """A file may give less than it is asked for; one that gives more might never end."""
    kept = io.BytesIO()
    while left := limit - kept.tell():
        asked = min(left, _BLOCK)
        part = source.read(asked)
        if not isinstance(part, bytes):
            raise PictureError(label, reason="is open as text", hint="Open it with mode 'rb'.")
        if len(part) > asked:
            raise PictureError(label, reason="gives more bytes than it is asked for")
        if not part:
            break
        kept.write(part)
    return kept.getvalue()


def picture_of(source: Any, label: str) -> Image.Image:
    """The PIL image of an array or tensor.

    Its shape is [H, W], [H, W, C] or [C, H, W], C being 1 (grey), 3 (RGB) or 4 (with alpha); a
    batch of one is a picture too. Its values are uint8, bool, or floats from 0 to 1. Raises
    PictureError for everything else.
    """
    if hasattr(source, "detach"):
        tensor = source.detach().cpu()
        source = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    array = _channels_last(source, label)
    height, width = array.shape[:2]
    if height * width > MAX_IN_MEMORY:
        reason = f"{width}x{height} is more than {MAX_IN_MEMORY // 10**6} million pixels"
        raise PictureError(label, reason=reason, hint="Scale the picture down.")
    _check_values(array, label)
    mode = _MODES[array.shape[2] if array.ndim == 3 else 1]
    picture, rows = Image.new(mode, (width, height)), max(1, _BLOCK // max(1, width))
    for top in range(0, height if width else 0, rows):
        picture.paste(Image.fromarray(_eight_bit(array[top : top + rows])), (0, top))
    return picture


def _channels_last(array: NDArray[Any], label: str) -> NDArray[Any]:
    """[H, W] for grey, else [H, W, C]."""
    shape = array.shape
    if array.ndim == 4 and shape[0] == 1:
        array = array[0]
    if array.ndim == 2:
        return array
    if array.ndim != 3 or not {array.shape[0], array.shape[2]} & {*_CHANNELS}:
        several = array.ndim == 4
        raise PictureError(
            label,
            reason=f"its shape {list(shape)} is not [H, W], [H, W, 1, 3 or 4] or [1, 3 or 4, H, W]",
            hint="Give several pictures as a list." if several else "Give one picture's pixels.",
        )
    first, last = (array.shape[axis] in _CHANNELS for axis in (0, 2))
    if first and last:
        raise PictureError(
            label,
            reason=f"its shape {list(shape)} reads as [channels, H, W] and as [H, W, channels]",
            hint="Give a PIL image.",
        )
    array = np.moveaxis(array, 0, -1) if first else array
    return array[:, :, 0] if array.shape[2] == 1 else array


def _check_values(array: NDArray[Any], label: str) -> None:
    """Raises PictureError for values that do not say what is black and what is white."""
    if array.dtype in (np.uint8, np.bool_) or array.size == 0:
        return
    if array.dtype.kind != "f":
        raise PictureError(
            label,
            reason=f"its {array.dtype} values do not say which is white",
            hint="Give uint8 (0 to 255), or floats from 0 to 1.",
        )
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 1):  # NaN too
        hint = "Convert it to uint8 (0 to 255), or to floats from 0 to 1."
        if -1 <= low < 0 and high <= 1:
            hint = (
                "If it goes from -1 (black) to 1 (white), give (x + 1) / 2; if it goes from 0 to "
                "1 and overshoots, clip it."
            )
        raise PictureError(
            label, reason=f"its values go from {low:g} to {high:g}, not from 0 to 1", hint=hint
        )


def _eight_bit(array: NDArray[Any]) -> NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array, np.uint8)
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    return np.round(array.astype(np.float64) * 255).astype(np.uint8)
