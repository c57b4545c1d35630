"""Contact sheet: the styles of a library on one picture, each with its name and its tags."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from imageprompt.library import thumbnail
from imageprompt.library.style import Style

CELL, GAP, MARGIN, CAPTION = 176, 20, 28, 44  # px
MAX_COLUMNS = 8
INK, PALE, PAPER, EMPTY = "#1c1c1e", "#6b6b70", "#ffffff", "#ececee"


def contact_sheet(styles: Sequence[Style]) -> Image.Image:
    """Rows of thumbnails, in the order given."""
    columns = min(MAX_COLUMNS, max(1, math.ceil(math.sqrt(1.6 * len(styles)))))
    rows = -(-len(styles) // columns)
    width = 2 * MARGIN + columns * (CELL + GAP) - GAP
    height = 2 * MARGIN + rows * (CELL + CAPTION + GAP) - GAP
    page = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(page)
    for index, style in enumerate(styles):
        x = MARGIN + index % columns * (CELL + GAP)
        y = MARGIN + index // columns * (CELL + CAPTION + GAP)
        small = thumbnail.read(style) or Image.new("RGB", (CELL, CELL), EMPTY)
        page.paste(small.resize((CELL, CELL), Image.Resampling.LANCZOS), (x, y))
        pen.rectangle((x, y, x + CELL - 1, y + CELL - 1), outline=EMPTY)
        _line(pen, (x, y + CELL + 19), style.name, 15, INK)
        _line(pen, (x, y + CELL + 37), ", ".join(style.tags), 12, PALE)
    return page


def _line(pen: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, ink: str) -> None:
    """Text that is cut where the cell ends."""
    font = ImageFont.load_default(size)
    cut = text
    while cut and font.getlength(cut if cut == text else f"{cut}\u2026") > CELL:
        cut = cut[:-1]
    pen.text(at, cut if cut == text else f"{cut}\u2026", font=font, fill=ink, anchor="ls")
