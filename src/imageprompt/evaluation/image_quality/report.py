"""Quality of reference pictures: each is measured once, summarised, and given advice in words."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from imageprompt.core.bundled import NAME as BUNDLED
from imageprompt.core.console import aligned
from imageprompt.core.errors import PictureError
from imageprompt.encoding.images.open_image import (
    PictureSource,
    open_picture,
    open_stored,
    picture_size,
)
from imageprompt.evaluation.image_quality import blur, jpeg

if TYPE_CHECKING:
    from PIL.Image import Image

    from imageprompt.encoding.encoders import Encoder

MIN_SIDE = 512
"""px of the short side: encoders read 224 to 336 pixels, but tiles and crops read parts of it."""
GOOD_QUALITY, POOR_QUALITY = 75, 50
SOFTENING = 2.2
"""A picture enlarged f times, or blurred as much, has edges f / 2.2 pixels wide."""
SOFT = 0.75
MAX_CROP_LOSS = 0.1
SIMILAR = 0.7
"""Cosine of two references from which they mix well."""
NEAR_DUPLICATE = 0.97
"""Cosine from which two pictures count as copies of each other."""
PATCH = 448  # px; nine patches of a large picture are measured
WHOLE = 2_000_000  # up to so many pixels, all of it is measured

MAX_TABLE = 12  # pictures that are listed one by one; of more there is a summary
MAX_GROUPS = 12
WORST = 12

PROBLEMS = {
    "small": f"less than {MIN_SIDE} px on the short side",
    "soft": "blurred or enlarged",
    "JPEG damage": f"quality below {GOOD_QUALITY}",
    "not square": f"the encoder's centre crop loses more than {MAX_CROP_LOSS:.0%}",
    "transparent": "transparent parts become white",
}

_BATCH, _BATCH_PIXELS = 16, 16_000_000  # pictures, and pixels, encoded at once


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


@dataclass(frozen=True)
class PicturePair:
    """How similar two references are to an encoder: the cosine of their `image_embeds`."""

    a: str
    b: str
    similarity: float

    def advice(self) -> str:
        return "mix well" if self.similarity > SIMILAR else "differ"

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "advice": self.advice()}


@dataclass(frozen=True)
class QualityReport:
    """The quality of several pictures; `str` is what the command prints, `as_dict` is for JSON.

    `encoder_name` says by which encoder pictures were compared; "" if they were not.
    """

    pictures: Sequence[PictureQuality]
    unreadable: Sequence[PictureError] = ()
    encoder_name: str = ""
    embeddings: NDArray[np.float32] | None = field(default=None, repr=False)
    """Unit vectors [n, F], one for each of `pictures`."""

    def problems(self) -> dict[str, int]:
        """The number of pictures with each problem, the most frequent first."""
        counts = dict.fromkeys(PROBLEMS, 0)
        for picture in self.pictures:
            for name in picture.problems():
                counts[name] += 1
        return dict(sorted(counts.items(), key=lambda entry: -entry[1]))

    def worst(self, count: int = WORST) -> list[PictureQuality]:
        """The pictures with the most, and the most severe, problems."""
        troubled = [picture for picture in self.pictures if picture.problems()]
        return sorted(troubled, key=lambda p: (-len(p.problems()), -p.severity()))[:count]

    def pairs(self) -> Iterator[PicturePair]:
        """Every pair of pictures: n (n - 1) / 2 of them."""
        if self.embeddings is None:
            return
        for i, row in enumerate(self.embeddings):
            for j, cosine in enumerate(self.embeddings[i + 1 :] @ row, i + 1):
                yield PicturePair(
                    self.pictures[i].picture, self.pictures[j].picture, round(float(cosine), 3)
                )

    @cached_property
    def near_duplicates(self) -> list[list[str]]:
        """Groups of pictures connected by similarities of NEAR_DUPLICATE or more, largest first."""
        if self.embeddings is None:
            return []
        groups = duplicate_groups(self.embeddings, NEAR_DUPLICATE)
        return [[self.pictures[index].picture for index in group] for group in groups]

    def as_dict(self) -> dict[str, Any]:
        """Everything, every pair included."""
        return {
            "pictures": [picture.as_dict() for picture in self.pictures],
            "problems": self.problems(),
            "near_duplicates": self.near_duplicates,
            "pairs": [pair.as_dict() for pair in self.pairs()],
            "encoder": self.encoder_name,
            "unreadable": [str(error) for error in self.unreadable],
        }

    def __str__(self) -> str:
        few = len(self.pictures) <= MAX_TABLE
        lines = [*(self._details() if few else self._summary())]
        lines += [f"not read: {error}" for error in self.unreadable[:MAX_TABLE]]
        if len(self.unreadable) > MAX_TABLE:
            lines.append(f"not read: {len(self.unreadable) - MAX_TABLE} more")
        return "\n".join(lines)

    @property
    def _encoder(self) -> str:
        bundled = self.encoder_name == BUNDLED
        return (
            "the bundled encoder, which knows drawn scenes only" if bundled else self.encoder_name
        )

    def _details(self) -> Iterator[str]:
        """Every picture, and every pair of pictures."""
        if self.pictures:
            yield from _table(self.pictures)
        if self.embeddings is not None and len(self.pictures) > 1:
            yield ""
            yield f"similarity by {self._encoder}"
            yield from aligned(
                (pair.a, pair.b, f"{pair.similarity:.2f}", pair.advice()) for pair in self.pairs()
            )
            yield (
                f"Above {SIMILAR}, references mix well; below, weight them or keep them side by"
                " side."
            )

    def _summary(self) -> Iterator[str]:
        """Counts by problem, groups of near-duplicates, and the worst pictures."""
        good = sum(not picture.problems() for picture in self.pictures)
        unreadable = f", {len(self.unreadable)} cannot be read" if self.unreadable else ""
        yield f"{len(self.pictures)} pictures measured: {good} without problems{unreadable}."
        counts = {name: count for name, count in self.problems().items() if count}
        if counts:
            yield ""
            yield from aligned((name, str(n), PROBLEMS[name]) for name, n in counts.items())
        if self.embeddings is not None:
            yield ""
            yield from self._duplicates()
        worst = self.worst()
        if worst:
            yield ""
            yield f"The worst {len(worst)}:" if len(worst) > 1 else "The worst:"
            yield from _table(worst, short=True)
        yield ""
        yield "--json lists every picture and every pair; `check PICTURE` gives advice on one."

    def _duplicates(self) -> Iterator[str]:
        groups = self.near_duplicates
        by = f"similarity {NEAR_DUPLICATE} or more by {self._encoder}"
        if not groups:
            yield f"No near-duplicates ({by})."
            return
        yield f"{sum(map(len, groups))} near-duplicates in {len(groups)} group(s) ({by}):"
        for group in groups[:MAX_GROUPS]:
            names, more = group[:4], len(group) - 4
            yield f"  {len(group)}: {', '.join(names)}{f' and {more} more' if more > 0 else ''}"
        if len(groups) > MAX_GROUPS:
            yield f"  and {len(groups) - MAX_GROUPS} smaller groups"


def check(source: PictureSource) -> PictureQuality:
    """Measure one picture. Raises PictureError."""
    return _measure(open_stored(source), _name(source))


def check_pictures(
    sources: Sequence[PictureSource], encoder: Encoder | None = None, encoder_name: str = ""
) -> QualityReport:
    """Measure pictures, and compare them by an encoder's `image_embeds` if one is given.

    Every picture is opened once; those that cannot be read are listed in the report. Raises
    EncoderError for an encoder that makes no `image_embeds`.
    """
    pictures: list[PictureQuality] = []
    unreadable: list[PictureError] = []
    batch: list[Image] = []
    embedded: list[NDArray[np.float32]] = []

    def embed() -> None:
        if encoder is not None and batch:
            embedded.append(_embed(batch, encoder))
            batch.clear()

    for source in sources:
        try:
            stored = open_stored(source)
            opened = None if encoder is None else open_picture(stored)
            pictures.append(_measure(stored, _name(source)))
        except PictureError as error:
            unreadable.append(error)
            continue
        if opened is not None:
            batch.append(opened)
            pixels = sum(picture.width * picture.height for picture in batch)
            if len(batch) == _BATCH or pixels > _BATCH_PIXELS:
                embed()
    embed()
    embeddings = np.concatenate(embedded) if embedded else None
    return QualityReport(pictures, unreadable, encoder_name if encoder else "", embeddings)


def duplicate_groups(
    embeddings: NDArray[np.float32], threshold: float, *, rows: int = 1024
) -> list[list[int]]:
    """Connected components of unit vectors [n, F] whose cosines reach the threshold.

    Groups of two or more, the largest first, each in order. Cosines are computed `rows` rows at a
    time, so memory grows with n and not with its square.
    """
    parents = list(range(len(embeddings)))

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    for start in range(0, len(embeddings), rows):
        cosines = embeddings[start : start + rows] @ embeddings[start:].T
        for i, j in np.argwhere(np.triu(cosines >= threshold, 1)).tolist():
            a, b = root(start + i), root(start + j)
            parents[max(a, b)] = min(a, b)
    groups: dict[int, list[int]] = {}
    for index in range(len(embeddings)):
        groups.setdefault(root(index), []).append(index)
    return sorted((g for g in groups.values() if len(g) > 1), key=lambda g: (-len(g), g[0]))


def _table(pictures: Sequence[PictureQuality], *, short: bool = False) -> Iterator[str]:
    last = "problems" if short else "advice"
    head = ("picture", "size", "jpeg", "sharp as", "crop loses", "transparent", last)
    rows = [row for picture in pictures for row in picture.rows(short=short)]
    return aligned([head, tuple("-" * len(name) for name in head), *rows], indent="")


def _embed(pictures: Sequence[Image], encoder: Encoder) -> NDArray[np.float32]:
    import torch

    embeddings = encoder.encode(pictures, "image_embeds")
    units = torch.nn.functional.normalize(embeddings.float(), dim=1)
    array: NDArray[np.float32] = units.cpu().numpy()
    return array


def _measure(stored: Image, name: str) -> PictureQuality:
    width, height = picture_size(stored)
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
    counts = stored.convert("RGBA").getchannel("A").histogram()
    return round(sum(n * (255 - alpha) for alpha, n in enumerate(counts)) / 255 / sum(counts), 3)


def _name(source: PictureSource) -> str:
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    return getattr(source, "filename", "") or "in memory"
