"""Lays the demo's pictures out as one contact sheet with captions."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from imageprompt.demo.rows import PROMPT, SWEEP, SWEPT, TEXT_SCALE, Row
from imageprompt.page import INK, PALE, Page

CELL = 128
GAP = 12
MARGIN = 36
CAPTION = 38  # height of the text under a picture
GROUP = 5 * CELL + 5 * GAP  # width of one row: reference, words, two of picture, both
BETWEEN = 48


def draw_sheet(rows: Sequence[Row]) -> Image.Image:
    """References and what was made with them, two side by side; below, the sweep over scale."""
    columns = 1 if len(rows) == 1 else 2
    lines = -(-len(rows) // columns)
    swept = [row for row in rows if "sweep" in row.made]
    width = 2 * MARGIN + 2 * GROUP + BETWEEN
    top = MARGIN + 62
    body = 26 + lines * (CELL + CAPTION + GAP)
    sweep = 66 + len(swept) * (CELL + GAP)
    page = Page(width, top + body + sweep + MARGIN)
    page.text(MARGIN, MARGIN, "imageprompt", size=30, at="left")
    motto = "a picture says what the words leave out; words change what they name"
    page.text(MARGIN + 200, MARGIN + 10, motto, size=17, at="left")
    for column in range(columns):
        _headings(page, MARGIN + column * (GROUP + BETWEEN), top)
    for index, row in enumerate(rows):
        x = MARGIN + (index % columns) * (GROUP + BETWEEN)
        _row(page, row, x, top + 26 + (index // columns) * (CELL + CAPTION + GAP))
    _sweep(page, swept, top + body)
    return page.image


def _headings(page: Page, x: int, y: int) -> None:
    step = CELL + GAP
    names = ("reference", "words alone", "with reference", "another seed", f"scale {TEXT_SCALE}")
    for index, name in enumerate(names):
        page.text(x + 4 + index * step + CELL // 2, y, name, size=14, colour=PALE)


def _row(page: Page, row: Row, x: int, y: int) -> None:
    """One reference: its pictures, and under each the text that it was made with."""
    cells = [row.reference, *row.made["words"], *row.made["picture"], *row.made["both"]]
    quoted = f"\u201c{PROMPT}\u201d"
    texts = ["", quoted, quoted, quoted, f"\u201c{row.text}\u201d"]
    for index, (path, text) in enumerate(zip(cells, texts, strict=True)):
        left = x + 4 + index * (CELL + GAP)
        page.picture(path, left, y, framed=index == 0)
        ink = INK if index == 4 else PALE
        page.text(left + CELL // 2, y + CELL + 7, text, colour=ink, width=CELL + GAP)


def _sweep(page: Page, rows: Sequence[Row], y: int) -> None:
    """The same seed at growing scales, centred on the page."""
    page.rule(y, margin=MARGIN)
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
