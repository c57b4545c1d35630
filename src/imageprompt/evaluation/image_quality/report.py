"""Quality of several reference pictures: listed, or summarised if there are many."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from imageprompt.core.bundled import NAME as BUNDLED
from imageprompt.core.console import aligned
from imageprompt.core.errors import PictureError, as_text
from imageprompt.encoding.encoders.contract import pooled_feature
from imageprompt.encoding.images.open_image import PictureSource, open_picture, open_stored
from imageprompt.evaluation.image_quality.picture import (
    PROBLEMS,
    PictureQuality,
    measure,
    name_of,
)

if TYPE_CHECKING:
    from PIL.Image import Image

    from imageprompt.encoding.encoders import Encoder

SIMILAR = 0.7
"""Cosine of two references from which they mix well."""
NEAR_DUPLICATE = 0.97
"""Cosine from which two pictures count as copies of each other."""

MAX_TABLE = 12  # pictures that are listed one by one; of more there is a summary
MAX_GROUPS = 12
WORST = 12

_BATCH, _BATCH_PIXELS = 16, 16_000_000  # pictures, and pixels, encoded at once


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
        return as_text(lines)

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


def check_pictures(
    sources: Sequence[PictureSource], encoder: Encoder | None = None, encoder_name: str = ""
) -> QualityReport:
    """Measure pictures, and compare them by an encoder's pooled feature if one is given.

    Every picture is opened once; those that cannot be read are listed in the report. Raises
    EncoderError for an encoder that makes no pooled feature.
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
            pictures.append(measure(stored, name_of(source)))
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

    embeddings = encoder.encode(pictures, pooled_feature(encoder) or "image_embeds")
    units = torch.nn.functional.normalize(embeddings.float(), dim=1)
    array: NDArray[np.float32] = units.cpu().numpy()
    return array
