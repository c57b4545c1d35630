"""Framing: how a picture of any shape becomes the square that an encoder reads.

An encoder's own preparation takes the centre and loses the sides. The author's advice for other
shapes than squares is the plain resize (squash); crop positions, pad, sharpening and tiles are
those of ComfyUI_IPAdapter_plus.
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


def sharpened(picture: Image, amount: float) -> Image:
    """Contrast-adaptive sharpening (AMD's CAS as ComfyUI_IPAdapter_plus has it), in 8 bit.

    Each pixel gains contrast against its four neighbours, by how much room the brightest and the
    darkest of its nine leave; black beyond the edges, where it therefore changes nothing.
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
        room = np.sqrt(np.minimum(low, 2 - high) / high)
        weight = -room * np.float32(amount * (1 / 5 - 1 / 8) + 1 / 8)
        around = near[0, 1] + near[1, 0] + near[1, 2] + near[2, 1]
        found = np.nan_to_num((around * weight + x) / (1 + 4 * weight)).clip(0, 1)
    return Images.fromarray(np.round(found * 255).astype(np.uint8))


HOWS = ("crop", "squash", "pad", "tiles")
FILTERS = ("bicubic", "lanczos", "bilinear", "hamming", "box", "nearest")
POSITIONS = {
    "centre": (0.5, 0.5),
    "center": (0.5, 0.5),
    "top": (0.5, 0.0),
    "bottom": (0.5, 1.0),
    "left": (0.0, 0.5),
    "right": (1.0, 0.5),
}
MOST_DETAIL = 4
MOST_TILES = 4  # a picture longer than that many times its width loses its ends
NEARLY_SQUARE = (0.75, 1.33)  # height / width between these: four tiles of the central square
_TILE = 256  # px a tile had when the number of tiles was agreed on: what its rounding counts in

Box = tuple[int, int, int, int]
"""left, top, right, bottom in pixels."""


@dataclass(frozen=True, kw_only=True)
class Framing:
    """What is done to every reference before the encoder; `parse` reads what `str` writes.

    `how`: "crop" keeps the largest square, which lies at `position` (x, y in 0..1: 0 is left and
    top, 1 right and bottom) along the longer side; "squash" shows all of the picture, out of shape;
    "pad" shows all of it in shape, on bars of `colour`; "tiles" cuts it into squares, each of which
    is a reference of its own. `sharpen` in 0..1 is contrast-adaptive sharpening of what the encoder
    sees; `filter` scales the pixels (CLIP's own is bicubic). `detail` of n > 1 adds to every
    square a second reference: the square in n x n parts, each encoded alone, their features put
    together and pooled to the size of one (ComfyUI_IPAdapter_plus' ClipVision enhancer).
    """

    how: str = "crop"
    position: tuple[float, float] = (0.5, 0.5)
    colour: str = "black"
    sharpen: float = 0.0
    filter: str = "bicubic"
    detail: int = 1

    def __post_init__(self) -> None:
        if self.how not in HOWS:
            raise _refused(self.how, f"a preparation is {', '.join(HOWS[:-1])} or {HOWS[-1]}")
        if len(self.position) != 2 or not all(map(_share, self.position)):
            raise _refused(self.position, "a position is x, y, each from 0 to 1")
        if not _share(self.sharpen):
            raise _refused(self.sharpen, "sharpening goes from 0 to 1")
        if self.filter not in FILTERS:
            raise _refused(self.filter, f"a filter is one of {', '.join(FILTERS)}")
        if self.detail not in range(1, MOST_DETAIL + 1) or isinstance(self.detail, bool):
            raise _refused(self.detail, f"detail goes from 1 to {MOST_DETAIL}")
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
        for word in rest:
            name, _, value = word.partition(":")
            if name == "sharpen" and value:
                (fields["sharpen"],) = _numbers(value)[:1]
            elif name == "detail" and value.isdecimal():
                fields["detail"] = int(value)
            elif name in FILTERS and not value:
                fields["filter"] = name
            else:
                raise _refused(text, f"nothing is known of {word!r}")
        return cls(**fields)  # type: ignore[arg-type]

    def __str__(self) -> str:
        parts = [self.how]
        if self.how == "crop" and self.position != (0.5, 0.5):
            names = [name for name, place in POSITIONS.items() if place == self.position]
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
        return [sharpened(square, self.sharpen) for square in squares] if self.sharpen else squares

    def frame_mask(self, mask: Image, side: int) -> list[Image]:
        """The same cuts of a mask in mode "L"; what pad adds is masked out."""
        return self._squares(mask, side, "black")

    def _squares(self, picture: Image, side: int, colour: str) -> list[Image]:
        if self.how == "pad":
            picture = _padded(picture, colour)
        from PIL.Image import Resampling

        filter_ = Resampling[self.filter.upper()]
        # cut before scaling: a filter must not see what lies beyond the cut
        cuts = (picture.crop(box) for box in self.boxes(*picture.size))
        parts = (part for cut in cuts for part in (cut, *_parts(cut, self.detail)))
        return [part.resize((side, side), filter_) for part in parts]

    def pooled(self, squares: int) -> list[int]:
        """How many squares at a time make one reference: 1, or with detail 1 and n x n in turn."""
        if self.detail == 1:
            return [1] * squares
        many = self.detail**2
        return [1, many] * (squares // (1 + many))

    def boxes(self, width: int, height: int) -> list[Box]:
        """What of a picture of that size each square shows (of the padded picture, for pad)."""
        if self.how in ("squash", "pad"):
            return [(0, 0, width, height)]
        if self.how == "crop":
            short = min(width, height)
            left = int((width - short) * self.position[0])
            top = int((height - short) * self.position[1])
            return [(left, top, left + short, top + short)]
        return list(_tiles(width, height))


def tiled(source: PictureSource) -> list[tuple[Image, Image]]:
    """The tiles of a picture, each with the mask of the place that it came from.

    As references with masks of their own they show a picture that is no square at full size, each
    part of it in its part of the result (ComfyUI_IPAdapter_plus' tiled node):
    `tiles, masks = zip(*tiled(p)); generate(reference=list(tiles), mask=list(masks))`, at a size of
    the same shape. Raises PictureError.
    """
    from PIL import Image as Images

    from imageprompt.encoding.images.open_image import open_picture

    picture = open_picture(source)
    boxes = Framing(how="tiles").boxes(*picture.size)
    left, top = (min(box[side] for box in boxes) for side in (0, 1))
    right, bottom = (max(box[side] for box in boxes) for side in (2, 3))
    found = []
    for box in boxes:
        mask = Images.new("L", (right - left, bottom - top))
        mask.paste(255, (box[0] - left, box[1] - top, box[2] - left, box[3] - top))
        found.append((picture.crop(box), mask))
    return found


def _parts(cut: Image, n: int) -> Iterator[Image]:
    """n x n parts of a cut, row by row; none where n is 1."""
    lines = [[round(i * length / n) for i in range(n + 1)] for length in cut.size]
    for row in range(n if n > 1 else 0):
        for column in range(n):
            left, right = lines[0][column : column + 2]
            top, bottom = lines[1][row : row + 2]
            yield cut.crop((left, top, right, bottom))


def _tiles(width: int, height: int) -> Iterator[Box]:
    """Squares from left to right and top to bottom, evenly overlapping, that cover the picture."""
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
    shown = min(long, MOST_TILES * short)
    count = math.ceil(int(_TILE * shown / short) / _TILE)
    for index in range(count):
        start = round((long - shown) / 2 + index * (shown - short) / (count - 1))
        if width > height:
            yield start, 0, start + short, short
        else:
            yield 0, start, short, start + short


def _padded(picture: Image, colour: str) -> Image:
    """On a square of its longer side, in the middle."""
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
        raise _refused(colour, "a colour is a name such as white, or #rrggbb") from None


def _share(number: object) -> bool:
    """Is it a number from 0 to 1?"""
    return isinstance(number, float | int) and not isinstance(number, bool) and 0 <= number <= 1


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise _refused(text, "not a number, nor a position that is known") from None


def _refused(what: object, rule: str) -> OptionError:
    return OptionError(
        f"preparation {what!r}",
        reason=rule,
        hint="Such as squash, crop:top, crop:0.2,0.5, pad:white, tiles, crop+sharpen:0.3.",
    )
