"""Lays the demo's pictures out as one contact sheet with captions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from imageprompt.demo.rows import PROMPT, SWEEP, SWEPT, TEXT_SCALE, Row

CELL = 128
GAP = 12
MARGIN = 36
CAPTION = 38  # height of the text under a picture
GROUP = 5 * CELL + 5 * GAP  # width of one row: reference, words, two of picture, both
BETWEEN = 48
PAPER, INK, PALE, LINE = (252, 252, 250), (32, 32, 36), (120, 120, 126), (222, 222, 218)


class _Page:
    """A page that pictures and texts are put on."""

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (width, height), PAPER)
        self.pen = ImageDraw.Draw(self.image)

    def picture(self, path: Path, x: int, y: int, *, framed: bool = False) -> None:
        """A picture, scaled up smoothly; a frame marks a reference."""
        with Image.open(path) as picture:
            large = picture.convert("RGB").resize((CELL, CELL), Image.Resampling.LANCZOS)
        self.image.paste(large, (x, y))
        if framed:
            self.pen.rectangle((x - 4, y - 4, x + CELL + 3, y + CELL + 3), outline=INK, width=2)

    def text(self, x: int, y: int, text: str, *, size: int = 14, colour: Any = INK) -> None:
        """Text centred on x, its top at y; on two lines where one is too short."""
        font = ImageFont.load_default(size)
        lines = [text]
        if font.getlength(text) > CELL + GAP:
            words = text.split()
            half = min(
                range(1, len(words)),
                key=lambda i: max(
                    font.getlength(" ".join(words[:i])), font.getlength(" ".join(words[i:]))
                ),
            )
            lines = [" ".join(words[:half]), " ".join(words[half:])]
        for index, line in enumerate(lines):
            at = (x, y + index * (size + 2))
            self.pen.text(at, line, font=font, fill=colour, anchor="mt")

    def title(self, x: int, y: int, text: str, *, size: int) -> None:
        """A line of text that starts at x."""
        self.pen.text((x, y), text, font=ImageFont.load_default(size), fill=INK, anchor="lt")

    def rule(self, y: int) -> None:
        """A thin line across the page."""
        self.pen.line((MARGIN, y, self.image.width - MARGIN, y), fill=LINE, width=1)


def draw_sheet(rows: Sequence[Row]) -> Image.Image:
    """References and what was made with them, two side by side; below, the sweep over scale."""
    columns = 1 if len(rows) == 1 else 2
    lines = -(-len(rows) // columns)
    swept = [row for row in rows if "sweep" in row.made]
    width = 2 * MARGIN + 2 * GROUP + BETWEEN
    top = MARGIN + 62
    body = 26 + lines * (CELL + CAPTION + GAP)
    sweep = 66 + len(swept) * (CELL + GAP)
    page = _Page(width, top + body + sweep + MARGIN)
    page.title(MARGIN, MARGIN, "imageprompt", size=30)
    page.title(
        MARGIN + 200,
        MARGIN + 10,
        "a picture says what the words leave out; words change what they name",
        size=17,
    )
    for column in range(columns):
        _headings(page, MARGIN + column * (GROUP + BETWEEN), top)
    for index, row in enumerate(rows):
        x = MARGIN + (index % columns) * (GROUP + BETWEEN)
        _row(page, row, x, top + 26 + (index // columns) * (CELL + CAPTION + GAP))
    _sweep(page, swept, top + body)
    return page.image


def _headings(page: _Page, x: int, y: int) -> None:
    step = CELL + GAP
    names = ("reference", "words alone", "with reference", "another seed", f"scale {TEXT_SCALE}")
    for index, name in enumerate(names):
        page.text(x + 4 + index * step + CELL // 2, y, name, size=14, colour=PALE)


def _row(page: _Page, row: Row, x: int, y: int) -> None:
    """One reference: its pictures, and under each the text that it was made with."""
    cells = [row.reference, *row.made["words"], *row.made["picture"], *row.made["both"]]
    quoted = f"\u201c{PROMPT}\u201d"
    texts = ["", quoted, quoted, quoted, f"\u201c{row.text}\u201d"]
    for index, (path, text) in enumerate(zip(cells, texts, strict=True)):
        left = x + 4 + index * (CELL + GAP)
        page.picture(path, left, y, framed=index == 0)
        page.text(left + CELL // 2, y + CELL + 7, text, colour=INK if index == 4 else PALE)


def _sweep(page: _Page, rows: Sequence[Row], y: int) -> None:
    """The same seed at growing scales, centred on the page."""
    page.rule(y)
    width = (1 + len(SWEEP)) * (CELL + GAP)
    left = (page.image.width - width) // 2
    names = ["reference", *(f"scale {scale:g}" for scale in SWEEP)]
    for index, name in enumerate(names):
        page.text(left + index * (CELL + GAP) + CELL // 2, y + 24, name, size=14, colour=PALE)
    for line, row in enumerate(rows[:SWEPT]):
        for index, path in enumerate([row.reference, *row.made["sweep"]]):
            page.picture(
                path, left + index * (CELL + GAP), y + 50 + line * (CELL + GAP), framed=index == 0
            )
