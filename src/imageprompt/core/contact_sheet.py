"""Contact sheets: a page with pictures, captions and bars. Text is wrapped, and cut if it is huge.

Latin (diacritics included), Greek and Cyrillic are drawn with Noto Sans, which the package
depends on. Characters of other scripts come from a font of the system; if no font has them, a
warning says so once.
"""

from __future__ import annotations

import math
import os
import sys
import unicodedata
import warnings
from collections.abc import Iterator
from functools import cache, lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Literal

from PIL import Image, ImageDraw, ImageFont

from imageprompt.core.errors import shortened

Colour = tuple[int, int, int]
PAPER: Colour = (252, 252, 250)
INK: Colour = (32, 32, 36)
PALE: Colour = (120, 120, 126)
LINE: Colour = (222, 222, 218)

MAX_TEXT = 1000
"""Characters of one text: a stranger's prompt may have a million, each of another script."""

EDGE = 4  # px between text without a width and the edge of the page


class Page:
    """A page of `width` x `height` pixels; its pictures are `cell` pixels wide.

    `image` is the result. The page grows downwards if text reaches below its lower edge.
    """

    def __init__(self, width: int, height: int, *, cell: int = 128) -> None:
        self.image = Image.new("RGB", (width, height), PAPER)
        self.cell = cell

    @property
    def _draw(self) -> ImageDraw.ImageDraw:
        return ImageDraw.Draw(self.image)

    def picture(
        self,
        picture: Image.Image | str | os.PathLike[str],
        x: int,
        y: int,
        *,
        framed: bool = False,
        size: tuple[int, int] | None = None,
    ) -> None:
        """Draw a picture or a picture file, scaled to a cell. A frame marks a reference."""
        width, height = size or (self.cell, self.cell)
        if not isinstance(picture, Image.Image):
            with Image.open(picture) as opened:
                picture = opened.convert("RGB")
        fitted = picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
        self.image.paste(fitted, (x, y))
        if framed:
            box = (x - 4, y - 4, x + width + 3, y + height + 3)
            self._draw.rectangle(box, outline=INK, width=2)

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
    ) -> int:
        """Draw text whose first line begins at y, and whose left, middle or right end is at x.

        Lines longer than `width` (default: up to the edge of the page) are wrapped. Returns the
        height in pixels.
        """
        _warn_of_boxes(shown(text))
        lines = wrap(text, size, self._room(x, at) if width is None else width)
        step = line_height(size)
        self._grow(y + len(lines) * step)
        for index, line in enumerate(lines):
            length = text_width(line, size)
            left = x - {"left": 0.0, "middle": length / 2, "right": length}[at]
            mask, bearing = _line_mask(line, size)
            self.image.paste(colour, (round(left) - bearing, y + index * step), mask)
        return len(lines) * step

    def rule(self, y: int, *, margin: int) -> None:
        """Draw a thin line across the page."""
        self._draw.line((margin, y, self.image.width - margin, y), fill=LINE, width=1)

    def box(self, x: float, y: float, width: float, height: float, colour: Colour) -> None:
        """Draw a filled rectangle; nothing if it is less than a pixel wide."""
        if width >= 1:
            self._draw.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)

    def _room(self, x: int, at: str) -> int:
        before, after = x - EDGE, self.image.width - x - EDGE
        room = {"left": after, "middle": 2 * min(before, after), "right": before}[at]
        return max(1, room)

    def _grow(self, height: int) -> None:
        if height > self.image.height:
            taller = Image.new("RGB", (self.image.width, height), PAPER)
            taller.paste(self.image)
            self.image = taller


# ── lines ───────────────────────────────────────────────────────────────────────────────────────


def text_height(text: str, *, size: int = 14, width: int) -> int:
    """The height in pixels that `Page.text` needs for this text."""
    return len(wrap(text, size, width)) * line_height(size)


def line_height(size: int) -> int:
    """Pixels from one line to the next."""
    return round(1.3 * size)


def shown(text: str) -> str:
    """`text` as it is drawn: what turns lines round, erases or cannot be seen is escaped."""
    short = shortened(" ".join(text.split()), MAX_TEXT)
    return "".join(ascii(c)[1:-1] if _hidden(c) else c for c in short)


def _hidden(character: str) -> bool:
    category = unicodedata.category(character)
    return category in ("Cc", "Cs", "Cf") and character not in _JOINERS


_JOINERS = "\u200c\u200d"  # which Persian, Hindi and others need


def wrap(text: str, size: int, width: int) -> list[str]:
    """The fewest lines of at most `width` pixels, and these of about the same length.

    Breaks between words, and within a word only if it is wider than `width`.
    """
    text = shown(text)
    fewest = len(_fill(text, size, width))
    longest = max((text_width(word, size) for word in text.split()), default=0)
    low, high = min(math.ceil(longest), width), width  # the narrowest width with so few lines
    while low < high:
        middle = (low + high) // 2
        if len(_fill(text, size, middle)) <= fewest:
            high = middle
        else:
            low = middle + 1
    return _fill(text, size, high)


@lru_cache(maxsize=4096)
def text_width(text: str, size: int) -> float:
    """The width in pixels of one line."""
    return sum(font.getlength(run) for run, font in _runs(text, size)) / _FINER


def _line_mask(line: str, size: int) -> tuple[Image.Image, int]:
    """Coverage of one line, and how many pixels left of its origin the mask begins.

    Drawn several times larger and scaled down: at small sizes, hinted glyphs on whole pixels would
    be unevenly spaced.
    """
    bearing, ascent = size, _ascent(size)
    width, height = round(text_width(line, size)) + 2 * bearing, ascent + size
    mask = Image.new("L", (width * _FINER, height * _FINER))
    draw = ImageDraw.Draw(mask)
    left = float(bearing * _FINER)
    for run, font in _runs(line, size):
        draw.text((left, ascent * _FINER), run, font=font, fill=255, anchor="ls")
        left += font.getlength(run)
    return mask.reduce(_FINER), bearing


def _fill(text: str, size: int, width: int) -> list[str]:
    """Lines filled greedily, each with as much text as fits."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if text_width(longer, size) <= width:
            lines[-1] = longer
            continue
        lines = [*filter(None, lines), *_break(word, size, width)]
    return lines


def _break(word: str, size: int, width: int) -> list[str]:
    """Pieces of a word that fit, with at least one character each; marks stay with their letter."""
    pieces: list[str] = [""]
    for letter in _letters(word):
        if pieces[-1] and text_width(pieces[-1] + letter, size) > width:
            pieces.append(letter)
        else:
            pieces[-1] += letter
    return pieces


def _letters(word: str) -> list[str]:
    """Characters, each with the combining marks that follow it."""
    letters: list[str] = []
    for character in word:
        if letters and unicodedata.category(character)[0] == "M":
            letters[-1] += character
        else:
            letters.append(character)
    return letters


# ── fonts ───────────────────────────────────────────────────────────────────────────────────────

Font = ImageFont.FreeTypeFont

_FINER = 4  # text is drawn so many times larger
_PROBE = 16  # size at which a font is asked which characters it has
_NOT_A_CHARACTER = "\U0010ffff"  # no font has it, so it shows how a missing one looks
_UNUSABLE = ("lastresort", "adobeblank", "emoji")  # boxes for everything, nothing, bitmaps


def _runs(line: str, size: int) -> Iterator[tuple[str, Font]]:
    """The line in pieces of one font each, which is `_FINER` times larger than `size`.

    Spaces, punctuation and marks stay in the piece before them where its font has them, so that
    text that runs from right to left is laid out as a whole.
    """
    run, current = "", _file(" ")
    for character in line:
        neutral = unicodedata.category(character)[0] in "ZPMC"
        path = current if neutral and _has(current, character) else _file(character)
        if path != current and run:
            yield run, _font(current, _FINER * size)
            run = ""
        run, current = run + character, path
    if run:
        yield run, _font(current, _FINER * size)


@cache
def _font(path: str, size: int) -> Font:
    return ImageFont.truetype(path, size)


@cache
def _ascent(size: int) -> int:
    return _font(_noto(), size).getmetrics()[0]


@cache
def _noto() -> str:
    return str(files("fontpkg_noto_sans") / "files" / "NotoSans[wdth,wght].ttf")


@cache
def _has(path: str, character: str) -> bool:
    return _glyph(path, character) != _missing(path)


@cache
def _missing(path: str) -> tuple[tuple[int, int], bytes]:
    return _glyph(path, _NOT_A_CHARACTER)


def _glyph(path: str, character: str) -> tuple[tuple[int, int], bytes]:
    mask = _font(path, _PROBE).getmask(character)
    return mask.size, bytes(mask)


_found: list[str] = []
"""The system fonts used so far: the next character is probably in one of them."""


@cache
def _file(character: str) -> str:
    """The font file for a character; Noto Sans, which draws a box, if no font has it."""
    for path in (_noto(), *_found):
        if _has(path, character):
            return path
    for path in _system_fonts():
        if path not in _found and _usable(path) and _has(path, character):
            _found.append(path)
            return path
    return _noto()


_warned: set[str] = set()
"""The scripts that a warning has named."""


def _warn_of_boxes(text: str) -> None:
    """Warn, once for each script, of characters that no font has."""
    boxes = {c for c in text if c.isprintable() and not _has(_file(c), c)}
    scripts = {unicodedata.name(c, "unknown").split()[0].split("-")[0] for c in boxes} - _warned
    if scripts:
        _warned.update(scripts)
        warnings.warn(
            f"no font on this system has {', '.join(sorted(scripts))} characters: contact sheets "
            f"show boxes for {text!r}. Install a font that has them, such as Noto Sans CJK.",
            stacklevel=3,
        )


def _usable(path: str) -> bool:
    try:
        _font(path, _PROBE)
    except (OSError, ValueError):  # damaged, or bitmaps of another size
        return False
    return True


@cache
def _system_fonts() -> tuple[str, ...]:
    """Font files in the usual folders; upright sans-serif ones of ordinary weight first."""
    found = {
        str(path)
        for folder in _font_folders()
        for suffix in ("ttf", "otf", "ttc")
        for path in folder.rglob(f"*.{suffix}")
    }
    return tuple(sorted(filter(_wanted, found), key=_preference))


def _wanted(path: str) -> bool:
    name = Path(path).name.lower()
    return not any(word in name for word in _UNUSABLE)


def _preference(path: str) -> tuple[bool, bool, bool, str]:
    name = Path(path).name.lower()
    styled = any(word in name for word in ("bold", "italic", "oblique", "light", "thin", "black"))
    return "mono" in name, styled, "serif" in name.replace("sansserif", ""), name


def _font_folders() -> list[Path]:
    home = Path(os.path.expanduser("~"))  # noqa: PTH111 - raises nothing where there is none
    if sys.platform == "win32":
        local = Path(os.environ.get("LOCALAPPDATA", home)) / "Microsoft" / "Windows" / "Fonts"
        return [Path(os.environ.get("WINDIR", "C:/Windows")) / "Fonts", local]
    if sys.platform == "darwin":
        return [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library" / "Fonts"]
    return [
        Path("/usr/share/fonts"),
        Path("/usr/local/share/fonts"),
        home / ".fonts",
        home / ".local" / "share" / "fonts",
    ]
