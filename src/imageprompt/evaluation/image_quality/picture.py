"""Quality of one reference picture: measured once, with advice in words."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from imageprompt.encoding.images.open_image import (
    PictureSource,
    alpha_of,
    open_picture,
    open_stored,
    upright_size,
)
from imageprompt.evaluation.image_quality import blur, jpeg

if TYPE_CHECKING:
    from PIL.Image import Image

MIN_SIDE = 512
"""px of the short side: encoders read 224 to 336 pixels, but tiles and crops read parts of it."""
GOOD_QUALITY, POOR_QUALITY = 75, 50
SOFTENING = 2.2
"""A picture enlarged f times, or blurred as much, has edges f / 2.2 pixels wide."""
SOFT = 0.75
MAX_CROP_LOSS = 0.1
PATCH = 448  # px; nine patches of a large picture are measured
WHOLE = 2_000_000  # up to so many pixels, all of it is measured

PROBLEMS = {
    "small": f"less than {MIN_SIDE} px on the short side",
    "soft": "blurred or enlarged",
    "JPEG damage": f"quality below {GOOD_QUALITY}",
    "not square": f"the encoder's centre crop loses more than {MAX_CROP_LOSS:.0%}",
    "transparent": "transparent parts become white",
}


@dataclass(frozen=True, kw_only=True)
class PictureQuality:
    """The quality of one picture.

    `jpeg` is the quality (1..100) of a JPEG file, `earlier` that of a worse compression before it
    (in a file that is not JPEG: of any). `edge` is the blur of its sharpest edges in pixels,
    `sharp_as` the short side in pixels of an unblurred picture with as much detail. `crop_loses`
    and `transparent` are fractions 0..1: what a centre crop leaves out, and what becomes white.
    None: nothing was found.
    """

    picture: str
    width: int
    height: int
    jpeg: int | None
    earlier: int | None
    edge: float | None
    sharp_as: int | None
    crop_loses: float
    transparent: float

    def problems(self) -> dict[str, tuple[str, float]]:
        """Name of each problem (see PROBLEMS) -> advice in one line, and severity 0..1."""
        short = min(self.width, self.height)
        sharp = short if self.sharp_as is None else self.sharp_as
        quality = min(q for q in (self.jpeg, self.earlier, 100) if q is not None)
        before = self.earlier is not None and self.earlier == quality
        rules = (
            (
                "small",
                short < MIN_SIDE,
                f"small: {short} px on the short side; {MIN_SIDE} or more are better",
                1 - short / MIN_SIDE,
            ),
            (
                "soft",
                sharp < min(MIN_SIDE, SOFT * short),
                f"soft: no sharper than a picture of {sharp} px; use the original, or sharpen",
                1 - sharp / min(MIN_SIDE, short),
            ),
            (
                "JPEG damage",
                quality < GOOD_QUALITY,
                f"{'heavy ' if quality < POOR_QUALITY else ''}JPEG damage: "
                f"{'saved before at' if before else 'saved at'} quality {quality}",
                1 - quality / GOOD_QUALITY,
            ),
            (
                "not square",
                self.crop_loses > MAX_CROP_LOSS,
                f"not square: the encoder's centre crop loses {self.crop_loses:.0%}; "
                "frame it by squash (the author's advice), crop:POSITION, pad or tiles",
                self.crop_loses,
            ),
            (
                "transparent",
                self.transparent > 0,
                f"transparent: {self.transparent:.0%} of it becomes white",
                self.transparent,
            ),
        )
        return {name: (advice, severity) for name, found, advice, severity in rules if found}

    def advice(self) -> list[str]:
        """One line for each problem; empty if there is none."""
        return [advice for advice, _ in self.problems().values()]

    def severity(self) -> float:
        """Sum over the problems, to order pictures by; 0 without any."""
        return sum(severity for _, severity in self.problems().values())

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "advice": self.advice()}

    def rows(self, *, short: bool = False) -> list[tuple[str, ...]]:
        """Table rows: one for each piece of advice, or with `short` one that names the problems."""
        advice = [", ".join(self.problems())] if short else self.advice() or ["good"]
        qualities = [str(self.jpeg)] if self.jpeg else []
        qualities += [f"~{self.earlier}"] if self.earlier else []
        figures = (
            self.picture,
            f"{self.width}x{self.height}",
            " ".join(qualities) or "-",
            "-" if self.sharp_as is None else str(self.sharp_as),
            f"{self.crop_loses:.0%}",
            f"{self.transparent:.0%}",
        )
        blank = tuple("" for _ in figures)
        return [(*figures, advice[0]), *((*blank, line) for line in advice[1:])]


def check(source: PictureSource) -> PictureQuality:
    """Measure one picture. Raises PictureError."""
    return measure(open_stored(source), name_of(source))


def measure(stored: Image, name: str) -> PictureQuality:
    """Measure an opened picture (see `open_stored`). Raises PictureError."""
    width, height = upright_size(stored)
    tables = getattr(stored, "quantization", None) if stored.format in ("JPEG", "MPO") else None
    quality = jpeg.from_tables(tables) if tables else None
    patches = _patches(stored)
    earlier = jpeg.from_pixels(patches, tables[min(tables)] if tables else None)
    edge = blur.edge_width(patches)
    short = min(width, height)
    return PictureQuality(
        picture=name,
        width=width,
        height=height,
        jpeg=quality.quality if quality else None,
        earlier=earlier.quality if earlier else None,
        edge=None if edge is None else round(edge, 2),
        sharp_as=None if edge is None else round(short / max(1.0, SOFTENING * edge)),
        crop_loses=round(1 - short / max(width, height), 3),
        transparent=_transparency(stored),
    )


def _patches(stored: Image) -> list[jpeg.Array]:
    """Luminance 0..255 of the whole picture, or of nine patches, at multiples of 8 pixels."""
    width, height = stored.size
    boxes = [(0, 0, width, height)]
    if width * height > WHOLE:
        lefts, tops = (
            [int(i * max(side - PATCH, 0) / 2) // 8 * 8 for i in range(3)] for side in stored.size
        )
        boxes = [
            (left, top, min(left + PATCH, width), min(top + PATCH, height))
            for left in lefts
            for top in tops
        ]
    weights = np.array([0.299, 0.587, 0.114])
    return [np.asarray(_opaque(stored, box), np.float64) @ weights for box in boxes]


def _opaque(stored: Image, box: tuple[int, int, int, int]) -> Image:
    part = stored.crop(box)
    part.info = {k: v for k, v in stored.info.items() if k == "transparency"}
    return open_picture(part)


def _transparency(stored: Image) -> float:
    """Mean transparency of the picture, 0..1."""
    if not stored.has_transparency_data:
        return 0.0
    counts = alpha_of(stored).histogram()
    return round(sum(n * (255 - alpha) for alpha, n in enumerate(counts)) / 255 / sum(counts), 3)


def name_of(source: PictureSource) -> str:
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    return getattr(source, "filename", "") or "in memory"
