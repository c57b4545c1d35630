"""Framing: how a picture of any shape becomes the square that an encoder reads.

An encoder's own preprocessing keeps the centre and loses the sides. The author of IP-Adapter
advises a plain resize (squash) for pictures that are not square. Crop positions, pad, sharpening
and tiles are those of ComfyUI_IPAdapter_plus.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imageprompt.core.errors import OptionError

if TYPE_CHECKING:
    from PIL.Image import Image

    from imageprompt.encoding.images.open_image import PictureSource

METHODS = ("crop", "squash", "pad", "tiles")
FILTERS = ("bicubic", "lanczos", "bilinear", "hamming", "box", "nearest")
POSITIONS = {
    "centre": (0.5, 0.5),
    "center": (0.5, 0.5),
    "top": (0.5, 0.0),
    "bottom": (0.5, 1.0),
    "left": (0.0, 0.5),
    "right": (1.0, 0.5),
}
MAX_DETAIL = 4
MAX_TILES = 4  # a picture longer than this many times its width loses its ends
NEARLY_SQUARE = (0.75, 1.33)  # height / width between these: four tiles of the central square
_TILE = 256  # px; the tile size that the peer's rounding of the number of tiles assumes

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels."""


@dataclass(frozen=True, kw_only=True)
class Framing:
    """How every reference is fitted to the encoder's square; `parse` reads what `str` writes.

    `how`: "crop" keeps the largest square, at `position` (x, y in 0..1: 0 is left or top, 1 right
    or bottom) along the longer side; "squash" keeps the whole picture, distorted; "pad" keeps the
    whole picture undistorted, on bars of `colour`; "tiles" cuts it into squares, each of which is a
    reference of its own. `sharpen` in 0..1 is contrast-adaptive sharpening of what the encoder
    reads; `filter` resamples the pixels (CLIP's own is bicubic). `detail` n > 1 adds a second
    reference to every square: the square in n x n parts, each encoded alone, their features
    assembled and pooled to the size of one (ComfyUI_IPAdapter_plus' ClipVision enhancer).

    Raises OptionError for values out of range.
    """

    how: str = "crop"
    position: tuple[float, float] = (0.5, 0.5)
    colour: str = "black"
    sharpen: float = 0.0
    filter: str = "bicubic"
    detail: int = 1

    def __post_init__(self) -> None:
        if self.how not in METHODS:
            raise _refused(self.how, f"not {', '.join(METHODS[:-1])} or {METHODS[-1]}")
        if len(self.position) != 2 or not all(map(_is_fraction, self.position)):
            raise _refused(self.position, "a position is x, y, each from 0 to 1")
        if not _is_fraction(self.sharpen):
            raise _refused(self.sharpen, "sharpen takes a number from 0 to 1")
        if self.filter not in FILTERS:
            raise _refused(self.filter, f"the filters are {', '.join(FILTERS)}")
        if self.detail not in range(1, MAX_DETAIL + 1) or isinstance(self.detail, bool):
            raise _refused(self.detail, f"detail takes a whole number from 1 to {MAX_DETAIL}")
        if self.how == "pad":
            _rgb(self.colour)

    @classmethod
    def parse(cls, text: str) -> Framing:
        """`squash`, `crop:top`, `crop:0.2,0.5`, `pad:white`, `tiles+sharpen:0.3+lanczos`.

        Raises OptionError.
        """
        head, *rest = str(text).strip().lower().split("+")
        how, _, argument = head.partition(":")
        fields: dict[str, object] = {"how": how}
        if argument and how == "crop":
            fields["position"] = POSITIONS.get(argument) or _numbers(argument)
        elif argument and how == "pad":
            fields["colour"] = argument
        elif argument:
            raise _refused(text, f"{how} takes nothing after a colon")
        for part in rest:
            name, _, value = part.partition(":")
            if name == "sharpen" and value:
                (fields["sharpen"],) = _numbers(value)[:1]
            elif name == "detail" and value.isdecimal():
                fields["detail"] = int(value)
            elif name in FILTERS and not value:
                fields["filter"] = name
            else:
                raise _refused(text, f"unknown part {part!r}")
        return cls(**fields)  # type: ignore[arg-type]

    def __str__(self) -> str:
        parts = [self.how]
        if self.how == "crop" and self.position != (0.5, 0.5):
            names = [name for name, position in POSITIONS.items() if position == self.position]
            parts[0] += ":" + (names[0] if names else ",".join(map(str, self.position)))
        if self.how == "pad" and self.colour != "black":
            parts[0] += f":{self.colour}"
        if self.sharpen:
            parts.append(f"sharpen:{self.sharpen}")
        if self.filter != "bicubic":
            parts.append(self.filter)
        if self.detail > 1:
            parts.append(f"detail:{self.detail}")
        return "+".join(parts)

    # ── pictures ────────────────────────────────────────────────────────────────────────────────

    def frame(self, picture: Image, side: int) -> list[Image]:
        """RGB squares of `side` pixels: one, one for each tile, or more with detail (`pooled`)."""
        squares = self._squares(picture, side, self.colour)
        return [sharpen(square, self.sharpen) for square in squares] if self.sharpen else squares

    def frame_mask(self, mask: Image, side: int) -> list[Image]:
        """The same cuts of a mask in mode "L"; bars added by pad are masked out."""
        return self._squares(mask, side, "black")

    def _squares(self, picture: Image, side: int, colour: str) -> list[Image]:
        if self.how == "pad":
            picture = _pad(picture, colour)
        from PIL.Image import Resampling

        filter_ = Resampling[self.filter.upper()]
        # cut before resampling: the filter must not read pixels beyond the cut
        cuts = (picture.crop(box) for box in self.boxes(*picture.size))
        parts = (part for cut in cuts for part in (cut, *_parts(cut, self.detail)))
        return [part.resize((side, side), filter_) for part in parts]

    def pooled(self, squares: int) -> list[int]:
        """How many squares at a time make one reference: 1, or with detail 1 and n x n in turn."""
        if self.detail == 1:
            return [1] * squares
        parts = self.detail**2
        return [1, parts] * (squares // (1 + parts))

    def boxes(self, width: int, height: int) -> list[Box]:
        """The part of a picture of that size in each square (for pad: of the padded picture)."""
        if self.how in ("squash", "pad"):
            return [(0, 0, width, height)]
        if self.how == "crop":
            short = min(width, height)
            left = int((width - short) * self.position[0])
            top = int((height - short) * self.position[1])
            return [(left, top, left + short, top + short)]
        return list(_tiles(width, height))


def tiled(source: PictureSource) -> list[tuple[Image, Image]]:
    """The tiles of a picture, each with a mask of its place in the picture.

    Used as references with those masks, they show a picture that is not square at full size, each
    part in its part of the result (ComfyUI_IPAdapter_plus' tiled node):
    `tiles, masks = zip(*tiled(p)); generate(reference=list(tiles), mask=list(masks))`, at a size of
    the same shape. Raises PictureError.
    """
    from PIL import Image as Images

    from imageprompt.encoding.images.open_image import open_picture

    picture = open_picture(source)
    boxes = Framing(how="tiles").boxes(*picture.size)
    left, top = (min(box[side] for box in boxes) for side in (0, 1))
    right, bottom = (max(box[side] for box in boxes) for side in (2, 3))
    tiles = []
    for box in boxes:
        mask = Images.new("L", (right - left, bottom - top))
        mask.paste(255, (box[0] - left, box[1] - top, box[2] - left, box[3] - top))
        tiles.append((picture.crop(box), mask))
    return tiles


def sharpen(picture: Image, amount: float) -> Image:
    """Contrast-adaptive sharpening (AMD's CAS as in ComfyUI_IPAdapter_plus), rounded to 8 bit.

    Each pixel gains contrast against its four neighbours, limited by the headroom that the
    brightest and the darkest of its nine leave. Pixels beyond the edges are black, so edges do not
    change.
    """
    import numpy as np
    from PIL import Image as Images

    x = np.asarray(picture, np.float32) / 255
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    rows, columns = x.shape[:2]
    near = {(i, j): padded[i : i + rows, j : j + columns] for i in range(3) for j in range(3)}
    cross = [near[at] for at in ((0, 1), (1, 0), (1, 1), (1, 2), (2, 1))]
    corners = [near[at] for at in ((0, 0), (0, 2), (2, 0), (2, 2))]
    low = np.minimum.reduce(cross) + np.minimum.reduce(corners)
    high = np.maximum.reduce(cross) + np.maximum.reduce(corners)
    with np.errstate(divide="ignore", invalid="ignore"):
        headroom = np.sqrt(np.minimum(low, 2 - high) / high)
        weight = -headroom * np.float32(amount * (1 / 5 - 1 / 8) + 1 / 8)
        neighbours = near[0, 1] + near[1, 0] + near[1, 2] + near[2, 1]
        sharp = np.nan_to_num((neighbours * weight + x) / (1 + 4 * weight)).clip(0, 1)
    return Images.fromarray(np.round(sharp * 255).astype(np.uint8))


def _parts(cut: Image, n: int) -> Iterator[Image]:
    """n x n parts of a cut, row by row; none if n is 1."""
    lines = [[round(i * length / n) for i in range(n + 1)] for length in cut.size]
    for row in range(n if n > 1 else 0):
        for column in range(n):
            left, right = lines[0][column : column + 2]
            top, bottom = lines[1][row : row + 2]
            yield cut.crop((left, top, right, bottom))


def _tiles(width: int, height: int) -> Iterator[Box]:
    """Squares that cover the picture, left to right and top to bottom, evenly overlapping."""
    low, high = NEARLY_SQUARE
    if low < height / width < high:
        side = min(width, height) // 2
        left, top = width // 2 - side, height // 2 - side
        for row in range(2):
            for column in range(2):
                x, y = left + column * side, top + row * side
                yield x, y, x + side, y + side
        return
    short, long = sorted((width, height))
    covered = min(long, MAX_TILES * short)
    count = math.ceil(int(_TILE * covered / short) / _TILE)
    for index in range(count):
        start = round((long - covered) / 2 + index * (covered - short) / (count - 1))
        if width > height:
            yield start, 0, start + short, short
        else:
            yield 0, start, short, start + short


def _pad(picture: Image, colour: str) -> Image:
    """Centred on a square with the picture's longer side."""
    from PIL import Image as Images

    side = max(picture.size)
    ground = _rgb(colour) if picture.mode == "RGB" else 0
    square = Images.new(picture.mode, (side, side), ground)
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square


def _rgb(colour: str) -> tuple[int, ...]:
    from PIL import ImageColor

    try:
        return ImageColor.getrgb(colour)[:3]
    except (ValueError, AttributeError):
        raise _refused(colour, "not a colour name such as white, or #rrggbb") from None


def _is_fraction(number: object) -> bool:
    return isinstance(number, float | int) and not isinstance(number, bool) and 0 <= number <= 1


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise _refused(text, "neither a number nor a known position") from None


def _refused(what: object, reason: str) -> OptionError:
    return OptionError(
        f"framing {what!r}",
        reason=reason,
        hint="Examples: squash, crop:top, crop:0.2,0.5, pad:white, tiles, crop+sharpen:0.3.",
    )
