"""Text on contact sheets: every script it promises, wrapped and never cut."""

from __future__ import annotations

import io
import shutil
import unicodedata
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageFont

from imageprompt.core import contact_sheet
from imageprompt.core.contact_sheet import PAPER, Page, text_height, text_width, wrap

CAPTION = "a photo of a cat in the snow, with so many words that they need several lines"


def letters(*blocks: tuple[int, int]) -> list[str]:
    points = (chr(point) for first, last in blocks for point in range(first, last + 1))
    return [c for c in points if unicodedata.category(c)[0] in "LNPS"]


@pytest.fixture
def fonts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the system's fonts, empty; what was found before is forgotten."""
    folder = tmp_path / "fonts"
    folder.mkdir()
    monkeypatch.setattr(contact_sheet, "_font_folders", lambda: [folder])
    monkeypatch.setattr(contact_sheet, "_found", [])
    monkeypatch.setattr(contact_sheet, "_warned", set())
    forget()
    yield folder
    forget()


def forget() -> None:
    for cached in ("_file", "_system_fonts", "text_width"):
        getattr(contact_sheet, cached).cache_clear()


def ink(image: Image.Image) -> tuple[int, int, int, int] | None:
    """Left, top, right and bottom of all that is not paper."""
    paper = Image.new("RGB", image.size, PAPER)
    difference = Image.frombytes(
        "L", image.size, bytes(a != b for a, b in zip(pixels(image), pixels(paper), strict=True))
    )
    return difference.getbbox()


def pixels(image: Image.Image) -> list[bytes]:
    content = image.tobytes()
    return [content[i : i + 3] for i in range(0, len(content), 3)]


# ── scripts ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "blocks",
    [
        [(0x21, 0x7E), (0xA1, 0x24F), (0x1E00, 0x1EFF)],  # Latin, Vietnamese included
        [(0x384, 0x3E1), (0x3F0, 0x3FF), (0x1F00, 0x1FFF)],  # Greek; between them is Coptic
        [(0x400, 0x52F)],  # Cyrillic
        [(0x2010, 0x2027)],  # dashes, quotation marks, the ellipsis
    ],
    ids=["latin", "greek", "cyrillic", "punctuation"],
)
def test_these_scripts_need_no_font_of_the_system(
    blocks: list[tuple[int, int]], fonts: Path
) -> None:
    missing = [c for c in letters(*blocks) if not contact_sheet._has(contact_sheet._noto(), c)]
    assert missing == []


def test_other_scripts_use_a_font_of_the_system(
    fonts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here Pillow's font, which is ASCII only, replaces Noto Sans, which replaces the system's."""
    small = fonts.parent / "ascii.otf"
    source = ImageFont.load_default(14)
    assert isinstance(source, ImageFont.FreeTypeFont)
    assert isinstance(source.path, io.BytesIO)
    small.write_bytes(source.path.getvalue())
    shutil.copy(contact_sheet._noto(), fonts / "Other-Regular.ttf")
    monkeypatch.setattr(contact_sheet, "_noto", lambda: str(small))
    runs = list(contact_sheet._runs("cat, кошка и γάτα.", 14))
    assert [(text, Path(str(font.path)).name) for text, font in runs] == [
        ("cat, ", "ascii.otf"),
        ("кошка и γάτα.", "Other-Regular.ttf"),
    ]


def test_a_script_that_no_font_has_is_reported_once(fonts: Path) -> None:
    page = Page(200, 40)
    with pytest.warns(UserWarning, match="no font on this system has CJK, HIRAGANA characters"):
        page.text(100, 4, "日本の")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page.text(100, 4, "語")
    assert ink(page.image) is not None


def test_damaged_fonts_are_skipped(fonts: Path) -> None:
    (fonts / "damaged.ttf").write_bytes(b"no font")
    with pytest.warns(UserWarning, match="no font on this system"):
        Page(200, 40).text(100, 4, "日")


# ── lines ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("width", [60, 128, 1000])
@pytest.mark.parametrize("text", [CAPTION, "x" * 300, "один два " + "длинное" * 20])
def test_lines_fit_and_hold_the_whole_text(text: str, width: int) -> None:
    lines = wrap(text, 14, width)
    assert all(text_width(line, 14) <= width for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert text_height(text, size=14, width=width) == len(lines) * contact_sheet.line_height(14)


def test_lines_are_of_about_the_same_length() -> None:
    lengths = [text_width(line, 14) for line in wrap(CAPTION, 14, 240)]
    assert len(lengths) > 1
    assert min(lengths) > 0.7 * max(lengths)


def test_a_mark_stays_with_its_letter() -> None:
    text = "e\u0301" * 50  # decomposed: a letter and an accent each
    assert all(len(line) % 2 == 0 and line[0] == "e" for line in wrap(text, 14, 60))


@pytest.mark.parametrize("at", ["left", "middle", "right"])
def test_text_is_never_cut(at: str) -> None:
    """Without a width it wraps at the edge; below the lower edge the page grows."""
    x = {"left": 120, "middle": 150, "right": 80}[at]
    page = Page(200, 20)
    height = page.text(x, 10, CAPTION, at=at)  # type: ignore[arg-type]
    assert page.image.height == 10 + height
    box = ink(page.image)
    assert box is not None
    assert 0 < box[0] < box[2] < 200
    assert box[3] < page.image.height
