"""Contact sheet: the styles of a library on one picture, each with its name and its tags."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageFont

from imageprompt.library import thumbnail
from imageprompt.library.style import Style
from imageprompt.page import INK, LINE, PALE, Colour, Page

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
        page.picture(thumbnail.read(style) or Image.new("RGB", (CELL, CELL), EMPTY), x, y)
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
