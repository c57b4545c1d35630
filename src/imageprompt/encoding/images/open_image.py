"""From whatever a user calls a picture to one plain RGB image: limits first, then pixels."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from imageprompt.core.errors import PictureError

PictureSource = str | os.PathLike[str] | bytes | Image.Image

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_FILE_BYTES = 128 * 2**20
MAX_PIXELS = 64_000_000  # 8000 x 8000; checked against the header, before anything is decoded
MIN_SIDE = 8  # px; an encoder patch of a smaller picture is one flat colour
MAX_ASPECT = 50

# EXIF tag 274: how the stored pixels are to be turned to stand upright.
_ORIENTATION = 274
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_ITS_SIDE = (5, 6, 7, 8)

# What a file that is none of FORMATS most likely is, by its first bytes.
_LOOKALIKES = (
    (b"<svg", "an SVG drawing"),
    (b"<?xml", "an XML document, perhaps an SVG drawing"),
    (b"<!doctype html", "an HTML page, perhaps a failed download"),
    (b"<html", "an HTML page, perhaps a failed download"),
    (b"version https://git-lfs", "a git-LFS pointer, not the file itself"),
    (b"gif8", "a GIF"),
    (b"bm", "a BMP"),
    (b"ii*\0", "a TIFF"),
    (b"mm\0*", "a TIFF"),
    (b"%pdf", "a PDF"),
)

# All that Pillow's decoders raise on damaged data.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)


def open_picture(source: PictureSource) -> Image.Image:
    """Open `source` (a path, a file's bytes or a PIL picture) as an upright, opaque RGB picture.

    Transparent pixels show white, 16-bit grey is scaled to 8 bit, CMYK and palettes are converted,
    of an animation the first frame is used (with a warning). Embedded colour profiles are not
    applied. The result carries no metadata, so opening it again changes nothing.

    Raises PictureError for what is no PNG, JPEG or WEBP, is damaged, larger than MAX_FILE_BYTES or
    MAX_PIXELS, smaller than MIN_SIDE on a side, or narrower than 1:MAX_ASPECT.
    """
    return _opaque_rgb(open_upright(source), describe(source))


def open_upright(source: PictureSource) -> Image.Image:
    """The same, with the colours and the transparency that it has."""
    return _upright(open_stored(source), describe(source))


def open_stored(source: PictureSource) -> Image.Image:
    """The same, turned as its pixels are stored, with what its format tells."""
    label = describe(source)
    with ExitStack() as stack:
        if isinstance(source, Image.Image):
            image = source
        else:
            stream = stack.enter_context(_stream(source, label))
            image = _identify(stream, label)
        _check_size(image, label)
        try:
            image.load()
        except MemoryError as error:
            raise PictureError(
                label,
                reason=f"its {image.width}x{image.height} pixels do not fit into memory",
                hint="Scale the picture down.",
            ) from error
        except _DAMAGE as error:
            raise PictureError(
                label,
                reason=f"the {image.format or 'picture'} data is damaged or cut short ({error})",
                hint="Fetch or export the picture again.",
            ) from error
        return image


def picture_size(source: PictureSource) -> tuple[int, int]:
    """Width and height of what `open_picture` would return, from the header: nothing is decoded.

    Raises PictureError for what is no picture or breaks a limit; damage further on is not seen.
    """
    label = describe(source)
    with ExitStack() as stack:
        if isinstance(source, Image.Image):
            image = source
        else:
            image = _identify(stack.enter_context(_stream(source, label)), label)
        _check_size(image, label)
        try:
            turned = image.getexif().get(_ORIENTATION) in _ON_ITS_SIDE
        except _DAMAGE:
            turned = False
        width, height = image.size
        return (height, width) if turned else (width, height)


def describe(source: object) -> str:
    """How an error names `source`."""
    if isinstance(source, bytes):
        return f"picture of {len(source)} bytes"
    if isinstance(source, Image.Image):
        return f"picture {getattr(source, 'filename', '') or 'in memory'}"
    if isinstance(source, str | os.PathLike):
        return f"picture {os.fspath(source)!r}"
    return f"picture of type {type(source).__name__}"


@contextmanager
def _stream(source: PictureSource, label: str) -> Iterator[BinaryIO]:
    if isinstance(source, bytes):
        _check_bytes(len(source), label)
        yield io.BytesIO(source)
        return
    if not isinstance(source, str | os.PathLike):
        raise PictureError(
            label,
            reason="a picture is a path, the bytes of a file, or a PIL image",
            hint="Pass one of those.",
        )
    path = Path(source)
    try:
        if not path.is_file():  # also refuses pipes and devices, which may never end
            what = "it is a folder" if path.is_dir() else "there is no such file"
            raise PictureError(
                label, reason=what, hint="Give the path of a PNG, JPEG or WEBP file."
            )
        _check_bytes(path.stat().st_size, label)
        stream = path.open("rb")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise PictureError(
            label,
            reason=f"it cannot be read ({reason})",
            hint="Check the path and its permissions.",
        ) from error
    with stream:
        yield stream


def _check_bytes(count: int, label: str) -> None:
    if count == 0:
        raise PictureError(label, reason="it is empty", hint="Fetch or export the picture again.")
    if count > MAX_FILE_BYTES:
        raise PictureError(
            label,
            reason=f"{count / 2**20:.0f} MiB is more than {MAX_FILE_BYTES // 2**20} MiB",
            hint="Scale the picture down.",
        )


def _identify(stream: BinaryIO, label: str) -> Image.Image:
    """Read the header only."""
    head = stream.read(512)
    stream.seek(0)
    try:
        with warnings.catch_warnings():
            # Pillow's own pixel limit warns where it should refuse; ours is lower anyway.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(stream, formats=FORMATS)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise PictureError(
            label,
            reason=f"it has more than {MAX_PIXELS // 10**6} million pixels",
            hint="Scale the picture down.",
        ) from error
    except UnidentifiedImageError as error:
        text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
        found = [what for start, what in _LOOKALIKES if text.startswith(start)]
        raise PictureError(
            label,
            reason=f"it is {found[0] if found else 'no picture that can be read'}; "
            f"only {', '.join(FORMATS[:-1])} and {FORMATS[-1]} are",
            hint="Save it as PNG.",
        ) from error
    except _DAMAGE as error:
        raise PictureError(
            label,
            reason=f"its header is damaged ({error})",
            hint="Fetch or export the picture again.",
        ) from error
    # A JPEG of several pictures (MPO: a phone's photo with its depth map) has one that counts.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        warnings.warn(
            f"{label} has {getattr(image, 'n_frames', 'several')} frames; only the first is used",
            stacklevel=3,
        )
    return image


def _check_size(image: Image.Image, label: str) -> None:
    width, height = image.size
    rule, remedy = "", ""
    if width * height > MAX_PIXELS:
        rule = f"{width}x{height} is more than {MAX_PIXELS // 10**6} million pixels"
        remedy = "Scale the picture down."
    elif min(width, height) < MIN_SIDE:
        rule = f"{width}x{height} is less than {MIN_SIDE} pixels on a side"
        remedy = "Use a larger picture."
    elif max(width, height) > MAX_ASPECT * min(width, height):
        rule = f"{width}x{height} is narrower than 1:{MAX_ASPECT}"
        remedy = "Crop it to the part that matters."
    if rule:
        raise PictureError(label, reason=rule, hint=remedy)


def _upright(image: Image.Image, label: str) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except _DAMAGE as error:
        warnings.warn(f"{label}: its EXIF data is damaged and not used ({error})", stacklevel=3)
        return image
    turn = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _opaque_rgb(image: Image.Image, label: str) -> Image.Image:
    if image.mode in ("I", "F"):
        raise PictureError(
            label,
            reason=f"mode {image.mode!r} has no agreed white",
            hint="Convert it to 'L' or 'RGB' first.",
        )
    if image.mode.startswith("I;16"):
        image = _grey_8_bit(image)
    if image.has_transparency_data:
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    image.info = {}
    return image


def _grey_8_bit(image: Image.Image) -> Image.Image:
    """16-bit grey to 'L' or 'LA'; Pillow's own conversion cuts all above 255 to white."""
    values = np.asarray(image)
    grey = Image.fromarray(((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8))
    hidden = image.info.get("transparency")
    if isinstance(hidden, int):
        grey.putalpha(Image.fromarray(np.where(values == hidden, 0, 255).astype(np.uint8)))
    return grey
