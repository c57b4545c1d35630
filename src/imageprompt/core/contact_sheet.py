"""A page that pictures, captions and bars are laid out on: contact sheets and figures."""

from __future__ import annotations

import os
from typing import Literal

from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
PAPER: Colour = (252, 252, 250)
INK: Colour = (32, 32, 36)
PALE: Colour = (120, 120, 126)
LINE: Colour = (222, 222, 218)


class Page:
    """A page of `width` x `height` pixels; pictures on it are `cell` pixels wide."""

    def __init__(self, width: int, height: int, *, cell: int = 128) -> None:
        self.image = Image.new("RGB", (width, height), PAPER)
        self.cell = cell
        self._pen = ImageDraw.Draw(self.image)

    def picture(
        self,
        picture: Image.Image | str | os.PathLike[str],
        x: int,
        y: int,
        *,
        framed: bool = False,
        size: tuple[int, int] | None = None,
    ) -> None:
        """A picture or its file, scaled smoothly to a cell; a frame marks a reference."""
        width, height = size or (self.cell, self.cell)
        if not isinstance(picture, Image.Image):
            with Image.open(picture) as opened:
                picture = opened.convert("RGB")
        fitted = picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
        self.image.paste(fitted, (x, y))
        if framed:
            self._pen.rectangle((x - 4, y - 4, x + width + 3, y + height + 3), outline=INK, width=2)

    def text(
        self,
        x: int,
        y: int,
        text: str,
        *,
        size: int = 14,
        colour: Colour = INK,
        at: Literal["left", "middle", "right"] = "middle",
        width: int | None = None,
    ) -> None:
        """Text whose capitals begin at about y and whose left end, middle or right end is at x.

        On several lines where one is longer than `width`.
        """
        font = ImageFont.load_default(size)
        lines = _lines(text, font, width)
        for index, line in enumerate(lines):
            place = (x, y + index * (size + 2))
            anchor = {"left": "la", "middle": "ma", "right": "ra"}[at]
            self._pen.text(place, line, font=font, fill=colour, anchor=anchor)

    def rule(self, y: int, *, margin: int) -> None:
        """A thin line across the page."""
        self._pen.line((margin, y, self.image.width - margin, y), fill=LINE, width=1)

    def box(self, x: float, y: float, width: float, height: float, colour: Colour) -> None:
        """A filled rectangle; nothing where it has no width."""
        if width >= 1:
            self._pen.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)


Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


def _lines(text: str, font: Font, width: int | None) -> list[str]:
    """As few lines as `width` allows, of about the same length."""
    if width is None:
        return [text]
    fewest = len(_filled(text, font, width))
    return next(
        lines for w in range(1, width + 1) if len(lines := _filled(text, font, w)) == fewest
    )


def _filled(text: str, font: Font, width: int) -> list[str]:
    """Lines with as many words as they hold, but one at least."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
