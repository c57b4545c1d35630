"""Small pictures of styles: made from references, kept as PNG or JPEG, read with suspicion."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence

from PIL import Image, ImageFont, ImageOps

from imageprompt.checkpoint.tensor_bytes import Weights
from imageprompt.core.contact_sheet import INK, LINE, PALE, Colour, Page
from imageprompt.core.errors import PictureError, PromptError
from imageprompt.encoding.images.open_image import open_picture, picture_size
from imageprompt.library.style import Style
from imageprompt.library.style_file import MAX_THUMBNAIL, Held

SIDE = 256  # px
MAX_SIDE = 1024  # of one that is read
PAPER = "white"
# Of two, three or four references: left, top and height of each, in halves of the side.
_PLACES = {
    2: ((0, 0, 2), (1, 0, 2)),
    3: ((0, 0, 2), (1, 0, 1), (1, 1, 1)),
    4: ((0, 0, 1), (1, 0, 1), (0, 1, 1), (1, 1, 1)),
}
_STARTS = (b"\x89PNG", b"\xff\xd8\xff")


def of_references(pictures: Sequence[Image.Image]) -> Image.Image:
    """One square picture: all of a single reference, or the middles of up to four."""
    if len(pictures) == 1:
        return ImageOps.pad(pictures[0], (SIDE, SIDE), Image.Resampling.LANCZOS, color=PAPER)
    canvas, half = Image.new("RGB", (SIDE, SIDE), PAPER), SIDE // 2
    for picture, (x, y, height) in zip(pictures, _PLACES[min(len(pictures), 4)], strict=False):
        cell = ImageOps.fit(picture, (half, height * half), Image.Resampling.LANCZOS)
        canvas.paste(cell, (x * half, y * half))
    return canvas


def of_shares(pictures: Sequence[Image.Image], shares: Sequence[float]) -> Image.Image:
    """Vertical strips of the styles in a mix, as wide as their shares."""
    canvas = Image.new("RGB", (SIDE, SIDE), PAPER)
    left, reached = 0, 0.0
    for picture, share in zip(pictures, shares, strict=True):
        reached += share
        right = round(SIDE * reached)
        if right > left:
            strip = ImageOps.fit(picture, (right - left, SIDE), Image.Resampling.LANCZOS)
            canvas.paste(strip, (left, 0))
        left = right
    return canvas


def held(picture: Image.Image) -> Held:
    """As the bytes of a PNG where that is small (drawings are), else of a JPEG."""
    content = _encoded(picture, format="PNG", optimize=True)
    if len(content) > MAX_THUMBNAIL // 8:
        content = _encoded(picture, format="JPEG", quality=90)
    return Held("U8", (len(content),), content)


def read(style: Style) -> Image.Image | None:
    """A style's thumbnail; None where it has none. Raises PromptError for one that is none."""
    stored = style.tensors.get("thumbnail")
    if stored is None:
        return None
    try:
        return opened(stored)
    except PictureError as error:
        raise PromptError(
            f"thumbnail of style {style.name!r}",
            reason=error.reason,
            hint="Get the file again, or add the style anew.",
        ) from error


def opened(stored: Weights) -> Image.Image:
    """Decoded, after its header has been looked at. Raises PictureError."""
    content = b"".join(map(bytes, stored.chunks()))
    if not content.startswith(_STARTS):
        raise PictureError("thumbnail", reason="it is no PNG and no JPEG")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about frames and EXIF, of which it needs neither
        width, height = picture_size(content)
        if max(width, height) > MAX_SIDE:
            raise PictureError(
                "thumbnail", reason=f"{width}x{height} is more than {MAX_SIDE}x{MAX_SIDE}"
            )
        return open_picture(content)


def _encoded(picture: Image.Image, **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, **options)  # type: ignore[arg-type]
    return stream.getvalue()


CELL, GAP, MARGIN, CAPTION = 176, 20, 28, 44  # px
MAX_COLUMNS = 8
EMPTY = LINE


def contact_sheet(styles: Sequence[Style]) -> Image.Image:
    """Rows of thumbnails, in the order given."""
    columns = min(MAX_COLUMNS, max(1, math.ceil(math.sqrt(1.6 * len(styles)))))
    rows = -(-len(styles) // columns)
    width = 2 * MARGIN + columns * (CELL + GAP) - GAP
    page = Page(width, 2 * MARGIN + rows * (CELL + CAPTION + GAP) - GAP, cell=CELL)
    for index, style in enumerate(styles):
        x = MARGIN + index % columns * (CELL + GAP)
        y = MARGIN + index // columns * (CELL + CAPTION + GAP)
        page.picture(read(style) or Image.new("RGB", (CELL, CELL), EMPTY), x, y)
        _caption(page, x, y + CELL + 7, style.name, 15, INK)
        _caption(page, x, y + CELL + 27, ", ".join(style.tags), 12, PALE)
    return page.image


def _caption(page: Page, x: int, y: int, text: str, size: int, colour: Colour) -> None:
    """One line, cut where the cell ends."""
    font = ImageFont.load_default(size)
    cut = text
    while cut and font.getlength(cut if cut == text else f"{cut}\u2026") > CELL:
        cut = cut[:-1]
    page.text(x, y, cut if cut == text else f"{cut}\u2026", size=size, colour=colour, at="left")
