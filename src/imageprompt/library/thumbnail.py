"""Thumbnails of styles: made from references, stored as PNG or JPEG, checked when read."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image, ImageOps

from imageprompt.checkpoint.read.stored_tensor import TensorBytes
from imageprompt.core.contact_sheet import INK, LINE, PALE, Colour, Page, text_height
from imageprompt.core.errors import PictureError, PromptError
from imageprompt.encoding.images.open_image import open_picture, picture_size

if TYPE_CHECKING:
    from imageprompt.library.style import Style

SIDE = 256  # px
MAX_PNG = 64 * 1024  # bytes; larger ones are photographs, which JPEG stores in less
MAX_SIDE = 1024  # px, of one that is read
PAPER = "white"
# For two, three or four references: left, top and height of each, in halves of the side.
_LAYOUTS = {
    2: ((0, 0, 2), (1, 0, 2)),
    3: ((0, 0, 2), (1, 0, 1), (1, 1, 1)),
    4: ((0, 0, 1), (1, 0, 1), (0, 1, 1), (1, 1, 1)),
}
_SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff")


def of_references(pictures: Sequence[Image.Image]) -> Image.Image:
    """One square picture: a single reference padded, or the centres of up to four."""
    if len(pictures) == 1:
        return ImageOps.pad(pictures[0], (SIDE, SIDE), Image.Resampling.LANCZOS, color=PAPER)
    canvas, half = Image.new("RGB", (SIDE, SIDE), PAPER), SIDE // 2
    for picture, (x, y, height) in zip(pictures, _LAYOUTS[min(len(pictures), 4)], strict=False):
        cell = ImageOps.fit(picture, (half, height * half), Image.Resampling.LANCZOS)
        canvas.paste(cell, (x * half, y * half))
    return canvas


def of_shares(pictures: Sequence[Image.Image], shares: Sequence[float]) -> Image.Image:
    """Vertical strips of the mixed styles, as wide as their shares."""
    canvas = Image.new("RGB", (SIDE, SIDE), PAPER)
    left, total = 0, 0.0
    for picture, share in zip(pictures, shares, strict=True):
        total += share
        right = round(SIDE * total)
        if right > left:
            strip = ImageOps.fit(picture, (right - left, SIDE), Image.Resampling.LANCZOS)
            canvas.paste(strip, (left, 0))
        left = right
    return canvas


def encode(picture: Image.Image) -> bytes:
    """The bytes of a PNG if that is small, as for drawings; else of a JPEG."""
    content = image_bytes(picture, format="PNG", optimize=True)
    if len(content) > MAX_PNG:
        content = image_bytes(picture, format="JPEG", quality=90)
    return content


def read(style: Style) -> Image.Image | None:
    """A style's thumbnail, or None. Raises PromptError for a damaged one."""
    stored = style.tensors.get("thumbnail")
    if stored is None:
        return None
    try:
        return _decode(stored)
    except PictureError as error:
        raise PromptError(
            f"thumbnail of style {style.name!r}",
            reason=error.reason,
            hint="Get the file again, or add the style again.",
        ) from error


def _decode(stored: TensorBytes) -> Image.Image:
    """The picture; its size is checked first. Raises PictureError."""
    content = b"".join(map(bytes, stored.chunks()))
    if not content.startswith(_SIGNATURES):
        raise PictureError("thumbnail", reason="neither PNG nor JPEG")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about frames and EXIF, which do not matter here
        width, height = picture_size(content)
        if max(width, height) > MAX_SIDE:
            raise PictureError(
                "thumbnail", reason=f"{width}x{height} is more than {MAX_SIDE}x{MAX_SIDE}"
            )
        return open_picture(content)


def image_bytes(picture: Image.Image, **options: object) -> bytes:
    """The file that `picture.save` would write with these options."""
    stream = io.BytesIO()
    picture.save(stream, **options)  # type: ignore[arg-type]
    return stream.getvalue()


CELL, GAP, MARGIN, CAPTION = 176, 20, 28, 44  # px
MAX_COLUMNS = 8
EMPTY = LINE


def contact_sheet(styles: Sequence[Style]) -> Image.Image:
    """Rows of thumbnails with names and tags, in the order given. Long texts are wrapped."""
    columns = min(MAX_COLUMNS, max(1, math.ceil(math.sqrt(1.6 * len(styles)))))
    rows = [styles[start : start + columns] for start in range(0, len(styles), columns)]
    heights = [CELL + max(_caption_height(style) for style in row) + GAP for row in rows]
    width = 2 * MARGIN + columns * (CELL + GAP) - GAP
    page = Page(width, 2 * MARGIN + sum(heights) - GAP, cell=CELL)
    y = MARGIN
    for row, height in zip(rows, heights, strict=True):
        for column, style in enumerate(row):
            x = MARGIN + column * (CELL + GAP)
            page.picture(read(style) or Image.new("RGB", (CELL, CELL), EMPTY), x, y)
            top = y + CELL + 7
            for text, size, colour in _caption(style):
                page.text(x, top, text, size=size, colour=colour, at="left", width=CELL)
                top += text_height(text, size=size, width=CELL)
        y += height
    return page.image


def _caption(style: Style) -> list[tuple[str, int, Colour]]:
    """Its texts with size and colour."""
    lines: list[tuple[str, int, Colour]] = [(style.name, 15, INK)]
    return [*lines, (", ".join(style.tags), 12, PALE)] if style.tags else lines


def _caption_height(style: Style) -> int:
    needed = sum(text_height(text, size=size, width=CELL) for text, size, _ in _caption(style))
    return max(CAPTION, 7 + needed)
