"""The result of a probe as a picture: what each site alone generates, and its shares as bars."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imageprompt.core.contact_sheet import LINE, PALE, Colour, Page
from imageprompt.evaluation.probing.result import ALL_SITES, NO_SITES, ProbeResult, SettingResult

if TYPE_CHECKING:
    from PIL.Image import Image

    from imageprompt.evaluation.probing.shares import Interval

CELL, GAP, MARGIN = 64, 8, 28
PITCH = CELL + 12  # from one picture of a row to the next: references have frames
STEP = CELL + GAP
NAMES = 226  # width of the column of names and of the text in it
BAR, BETWEEN = 118, 18
HEAD = 62
COLOURS: dict[str, Colour] = {
    "embedding": (150, 150, 156),
    "colour": (226, 122, 44),
    "texture": (214, 176, 70),
    "layout": (52, 110, 190),
}
ROLE_COLOURS: dict[str, Colour] = {"style": COLOURS["colour"], "layout": COLOURS["layout"]}


def draw_sheet(result: ProbeResult) -> Image:
    """References on top; below a row for each setting: its pictures, its bars, its role."""
    measures = list(result.all_sites.carried)
    shown = len(result.references)
    left = MARGIN + NAMES
    bars = left + shown * PITCH + BETWEEN
    width = bars + len(measures) * (BAR + BETWEEN) + 60 + MARGIN
    height = HEAD + STEP * (1 + len(result.rows)) + 3 * GAP + MARGIN
    page = Page(width, height, cell=CELL)
    adapter = result.settings["adapter"] or "a loaded one"
    title = f"what each site of the base carries from a reference (adapter: {adapter})"
    page.text(MARGIN, MARGIN - 8, title, size=18, at="left")
    page.text(MARGIN, HEAD + 24, "references", at="left", colour=PALE)
    for index, picture in enumerate(result.references):
        page.picture(picture, left + index * PITCH, HEAD, framed=True)
    for index, measure in enumerate(measures):
        x = bars + index * (BAR + BETWEEN)
        page.text(x, HEAD + 30, measure, at="left", size=15, colour=COLOURS[measure])
    count = result.settings["references"]
    caption = f"share of what all sites carry, 95 % intervals over {count} references"
    page.text(bars, HEAD + 6, caption, at="left", size=13, colour=PALE)
    y = HEAD + STEP + GAP
    for row in result.rows:
        if row is result.all_sites or row is next(iter(result.confirmation), None):
            page.rule(y - GAP // 2, margin=MARGIN)
        _row(page, row, y, left, bars)
        y += STEP
    return page.image


def _short(site: str) -> str:
    """`up_blocks.0.attentions.1 #3` for the third layer of a transformer."""
    return site.replace(".transformer_blocks.", " #").removesuffix(".attn2")


def _row(page: Page, row: SettingResult, y: int, left: int, bars: int) -> None:
    page.text(MARGIN, y + 18, _short(row.name), at="left", size=15)
    if row.name in ("style", "layout") and isinstance(row.scale, dict):
        sites = " + ".join(row.scale)
        page.text(MARGIN, y + 38, sites, at="left", size=12, colour=PALE, width=NAMES - GAP)
    for index, picture in enumerate(row.pictures):
        page.picture(picture, left + index * PITCH, y)
    for index, (measure, share) in enumerate(row.carried.items()):
        x = bars + index * (BAR + BETWEEN)
        if row.name not in (NO_SITES, ALL_SITES):  # 0 and 1: the ends of the scale
            _bar(page, x, y + 14, share, COLOURS[measure])
    x = bars + len(row.carried) * (BAR + BETWEEN)
    colour = ROLE_COLOURS.get(row.role, PALE)
    page.text(x, y + 22, row.role, at="left", size=15, colour=colour)


def _bar(page: Page, x: int, y: int, share: Interval | None, colour: Colour) -> None:
    """A bar from 0 to 1 with its interval as a line, and the value below."""
    if share is None:
        page.text(x, y + 6, "no gain to share", at="left", size=12, colour=PALE)
        return

    def position(value: float) -> float:
        return x + BAR * min(max(value, 0.0), 1.0)

    page.box(x, y, BAR, 14, LINE)
    page.box(x, y, position(share.value) - x, 14, colour)
    low, high = position(share.low), position(share.high)
    page.box(low, y + 6, max(high - low, 2), 2, (20, 20, 24))
    page.text(x, y + 20, str(share), at="left", size=12, colour=PALE)
